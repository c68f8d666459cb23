//! Amounts of resources: `100m`, `1.5`, `64Mi`, `1e3`. Grammar, rounding and canonical form follow apimachinery
//! `pkg/api/resource/quantity.go`.

use std::{
    cmp::Ordering,
    fmt,
    iter::Sum,
    ops::{Add, AddAssign, Sub},
    str::FromStr,
};

use serde_json::Value;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;
/// What Kubernetes caps amounts at, in billionths.
const MAX: i128 = i64::MAX as i128 * NANO;
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// By powers of 1000, from billionths on.
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

/// An exact amount of a resource, in its unit: cores, bytes, pods. How it was written matters for how it is shown,
/// not for what it equals.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The family of suffixes that an amount is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Format {
    /// `m`, `k`, `M`
    #[default]
    Decimal,
    /// `Ki`, `Mi`
    Binary,
    /// `e3`, `e6`
    Exponent,
}

/// What is wrong with a text that is no [`Quantity`]; the words are those of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// There is nothing, or a sign in the midst of it.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// Not one number stands before the suffix.
    #[error("unable to parse numeric part of quantity")]
    Number,
    /// The suffix is none of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Whole units: bytes, pods, cores.
    pub fn units(n: i64) -> Self {
        Quantity { nanos: i128::from(n) * NANO, format: Format::Decimal }
    }

    /// Thousandths of a unit: millicores.
    pub fn milli(n: i64) -> Self {
        Quantity { nanos: i128::from(n) * (NANO / 1000), format: Format::Decimal }
    }

    /// Bytes, shown with `Ki`, `Mi` and so on where that loses nothing.
    pub fn bytes(n: i64) -> Self {
        Quantity { nanos: i128::from(n) * NANO, format: Format::Binary }
    }

    /// A field's value: a string, or a bare number as JSON and YAML have them.
    ///
    /// # Errors
    /// It is something else, or no quantity.
    pub fn from_json(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError::Format),
        }
    }

    /// Units, rounded up.
    pub fn value(self) -> i64 {
        self.in_parts_of(NANO)
    }

    /// Thousandths of a unit, rounded up; `i64::MAX` where there are more.
    pub fn milli_value(self) -> i64 {
        self.in_parts_of(NANO / 1000)
    }

    fn in_parts_of(self, nanos: i128) -> i64 {
        let limit = if self.nanos < 0 { i64::MIN } else { i64::MAX };
        i64::try_from(divide_up(self.nanos, nanos)).unwrap_or(limit)
    }

    /// Whether it is nothing.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Whether it is less than nothing.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }
}

/// Divides and rounds towards positive infinity.
fn divide_up(n: i128, by: i128) -> i128 {
    n.div_euclid(by) + i128::from(n.rem_euclid(by) != 0)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(QuantityError::Format),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if part.contains('.') || (whole.is_empty() && part.is_empty()) {
            return Err(QuantityError::Number);
        }
        let (format, two, ten) = parse_suffix(suffix)?;
        let part = part.trim_end_matches('0');
        let digits = format!("{whole}{part}");
        let digits = digits.trim_start_matches('0');
        // Billionths are the number times 2^two times 10^scale.
        let scale = ten + 9 - i64::try_from(part.len()).unwrap_or(i64::MAX / 2);
        let nanos = if digits.is_empty() { 0 } else { scaled(digits, two, scale) };
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// `digits * 2^two * 10^ten`, a part of one rounded up (away from zero), at most [`MAX`].
fn scaled(digits: &str, two: u32, ten: i64) -> i128 {
    let power = |n: i64| u32::try_from(n).ok().and_then(|n| 10_i128.checked_pow(n));
    let times = digits.parse::<i128>().ok().and_then(|n| n.checked_mul(1 << two));
    let value = if ten >= 0 {
        times.and_then(|n| n.checked_mul(power(ten)?))
    } else {
        // Below a number of so many digits, any amount is a part of one.
        times.map(|n| power(-ten).map_or(1, |by| divide_up(n, by)))
    };
    value.map_or(MAX, |v| v.min(MAX))
}

/// The format and the powers of two and of ten that a suffix stands for.
fn parse_suffix(suffix: &str) -> Result<(Format, u32, i64), QuantityError> {
    if let Some(n) = DECIMAL.iter().position(|s| *s == suffix) {
        return Ok((Format::Decimal, 0, 3 * i64::try_from(n).unwrap_or_default() - 9));
    }
    if let Some(n) = BINARY.iter().position(|s| *s == suffix) {
        return Ok((Format::Binary, 10 * u32::try_from(n).unwrap_or_default(), 0));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let exponent: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
    Ok((Format::Exponent, 0, exponent.into()))
}

/// The canonical form: no fraction, and the largest suffix that allows it.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::Binary && self.nanos.abs() >= 1024 * NANO {
            let (mut n, mut suffix) = (divide_up(self.nanos, NANO), 0);
            while n % 1024 == 0 && suffix + 1 < BINARY.len() {
                (n, suffix) = (n / 1024, suffix + 1);
            }
            return write!(f, "{n}{}", BINARY[suffix]);
        }
        let (mut n, mut suffix) = (self.nanos, 0);
        while n % 1000 == 0 && suffix + 1 < DECIMAL.len() {
            (n, suffix) = (n / 1000, suffix + 1);
        }
        match (self.format, suffix) {
            (Format::Exponent, 3) => write!(f, "{n}"),
            (Format::Exponent, suffix) => {
                write!(f, "{n}e{}", 3 * i64::try_from(suffix).unwrap_or_default() - 9)
            }
            _ => write!(f, "{n}{}", DECIMAL[suffix]),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Shown as the left one is, unless that one is nothing.
impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + Quantity { nanos: -other.nanos, format: other.format }
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Quantity::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn amounts_are_read_rounded_and_shown_as_kubernetes_does() {
        // Text, units, thousandths, canonical form.
        for (text, value, milli, shown) in [
            ("0", 0, 0, "0"),
            ("0Ki", 0, 0, "0"),
            ("100m", 1, 100, "100m"),
            ("0.1", 1, 100, "100m"),
            (".5", 1, 500, "500m"),
            ("1.", 1, 1000, "1"),
            ("+2", 2, 2000, "2"),
            ("-1.5", -1, -1500, "-1500m"),
            ("1000m", 1, 1000, "1"),
            ("1500", 1500, 1_500_000, "1500"),
            ("2000", 2000, 2_000_000, "2k"),
            ("64Mi", 64 << 20, (64 << 20) * 1000, "64Mi"),
            ("1.5Gi", 3 << 29, (3 << 29) * 1000, "1536Mi"),
            ("1024Ki", 1 << 20, (1 << 20) * 1000, "1Mi"),
            // Below 1024, binary amounts are shown as decimal ones; above, as whole ones.
            ("0.5Ki", 512, 512_000, "512"),
            ("0.0001Ki", 1, 103, "102400u"),
            ("1.0001Ki", 1025, 1_024_103, "1025"),
            ("1e3", 1000, 1_000_000, "1e3"),
            ("1E3", 1000, 1_000_000, "1e3"),
            ("12e-1", 2, 1200, "1200e-3"),
            ("5e0", 5, 5000, "5"),
            ("1E", 1_000_000_000_000_000_000, i64::MAX, "1E"),
            ("1n", 1, 1, "1n"),
            // Finer than a billionth, too little, and too much.
            ("0.1n", 1, 1, "1n"),
            ("1e-99", 1, 1, "1e-9"),
            ("-0.1n", 0, 0, "-1n"),
            ("1e99", i64::MAX, i64::MAX, "9223372036854775807"),
            ("99999999999999999999999999999999999999999999", i64::MAX, i64::MAX, "9223372036854775807"),
            ("1.0000000000001Ei", (1 << 60) + 115_293, i64::MAX, "1152921504606962269"),
        ] {
            let one = q(text);
            assert_eq!((one.value(), one.milli_value()), (value, milli), "{text}");
            assert_eq!(one.to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_said() {
        use QuantityError::{Format, Number, Suffix};
        for (text, why) in [
            ("", Format),
            ("-", Number),
            (".", Number),
            ("x", Number),
            ("--1", Number),
            ("1.2.3", Number),
            ("1 ", Suffix),
            ("1K", Suffix),
            ("1mi", Suffix),
            ("1e", Suffix),
            ("1e1.5", Suffix),
            ("1MB", Suffix),
            ("1é", Suffix),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(why), "{text:?}");
        }
        assert_eq!(Quantity::from_json(&json!({})), Err(Format));
        assert_eq!(Quantity::from_json(&json!(1.5)), Ok(q("1500m")));
        assert_eq!(Quantity::from_json(&json!("2Gi")), Ok(Quantity::bytes(2 << 30)));
    }

    #[test]
    fn amounts_compare_and_add_across_formats() {
        assert_eq!(q("1Ki"), q("1024"));
        assert!(q("1M") < q("1Mi") && q("999m") < q("1") && q("-1") < q("0"));
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!([q("64Mi"), q("64Mi")].into_iter().sum::<Quantity>().to_string(), "128Mi");
        assert_eq!((q("1") - q("250m")).to_string(), "750m");
        assert_eq!((Quantity::units(3), Quantity::milli(1500)), (q("3"), q("1.5")));
        assert!(q("1.5").milli_value() == 1500 && !q("1.5").is_whole() && q("2k").is_whole());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_as_the_same(digits in "-?[0-9]{1,12}(\\.[0-9]{1,9})?", at in 0_usize..18) {
            let suffixes: Vec<&str> = DECIMAL.iter().chain(&BINARY[1..]).copied().chain(["e2", "e-3"]).collect();
            let one = q(&format!("{digits}{}", suffixes[at]));
            // A binary amount above 1Ki is shown as a whole number.
            let whole = suffixes[at].ends_with('i') && one.nanos.abs() >= 1024 * NANO;
            let expected = if whole { Quantity::units(one.value()) } else { one };
            prop_assert_eq!(q(&one.to_string()), expected);
        }

        #[test]
        fn no_input_panics(text in ".{0,20}") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn no_number_panics(text in "[+-]?[0-9.]{0,50}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,12}") {
            let _ = text.parse::<Quantity>().map(|q| q.to_string());
        }
    }
}
