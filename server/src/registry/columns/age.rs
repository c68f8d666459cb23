//! How long ago, as kubectl says it: apimachinery's `duration.HumanDuration`.

use jiff::Timestamp;
use minisvc_proto::Object;

/// What is shown for no time.
const UNKNOWN: &str = "<unknown>";

/// The age of an object.
pub fn of(object: &Object, now: Timestamp) -> String {
    at(object, "/metadata/creationTimestamp", now)
}

/// The time since a timestamp at a pointer.
pub fn at(object: &Object, pointer: &str, now: Timestamp) -> String {
    since(object.str_at(pointer), now)
}

/// The time since a timestamp.
pub fn since(text: Option<&str>, now: Timestamp) -> String {
    let then: Option<Timestamp> = text.and_then(|t| t.parse().ok());
    then.map_or_else(|| UNKNOWN.into(), |then| human(now.as_second() - then.as_second()))
}

/// Seconds in two units at most.
pub fn human(seconds: i64) -> String {
    let two = |big: i64, unit: char, small: i64, below: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{below}") }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        // Clocks that differ by less than two seconds are no fault.
        ..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, 'd', hours % 24, 'h'),
        _ if days < 2 * 365 => format!("{days}d"),
        _ if days < 8 * 365 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_writes_them() {
        const M: i64 = 60;
        const H: i64 = 3600;
        const D: i64 = 24 * H;
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (9 * M + 59, "9m59s"),
            (10 * M + 59, "10m"),
            (179 * M, "179m"),
            (3 * H, "3h"),
            (7 * H + 59 * M, "7h59m"),
            (8 * H + 59 * M, "8h"),
            (47 * H, "47h"),
            (48 * H, "2d"),
            (7 * D + 23 * H, "7d23h"),
            (8 * D + 23 * H, "8d"),
            (729 * D, "729d"),
            (730 * D, "2y"),
            (731 * D, "2y1d"),
            (3000 * D, "8y"),
        ] {
            assert_eq!(human(seconds), expected, "{seconds}");
        }
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        assert_eq!(since(Some("2026-01-01T00:00:03Z"), now), "7s");
        assert_eq!((since(None, now), since(Some("soon"), now)), (UNKNOWN.into(), UNKNOWN.into()));
    }
}
