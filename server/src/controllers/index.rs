//! Which objects a label or a selector concerns, without looking at all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use minisvc_proto::ObjectKey;

/// A namespace and one label with its value.
type Pair = (String, String, String);

type Labels = BTreeMap<String, String>;

fn pairs(key: &ObjectKey, labels: &Labels) -> Vec<Pair> {
    let namespace = key.namespace.clone().unwrap_or_default();
    labels.iter().map(|(k, v)| (namespace.clone(), k.clone(), v.clone())).collect()
}

/// Objects by their labels.
#[derive(Default)]
pub struct LabelIndex {
    buckets: HashMap<Pair, BTreeSet<ObjectKey>>,
}

impl LabelIndex {
    /// The object has other labels now; none if it is gone.
    pub fn set(&mut self, key: &ObjectKey, old: &Labels, new: &Labels) {
        if old == new {
            return;
        }
        for pair in pairs(key, old) {
            if let Some(bucket) = self.buckets.get_mut(&pair) {
                bucket.remove(key);
                if bucket.is_empty() {
                    self.buckets.remove(&pair);
                }
            }
        }
        for pair in pairs(key, new) {
            self.buckets.entry(pair).or_default().insert(key.clone());
        }
    }

    /// Every object that may match: those with the rarest of the selector's labels.
    pub fn candidates(&self, namespace: &str, selector: &Labels) -> impl Iterator<Item = &ObjectKey> {
        let bucket =
            |(k, v): (&String, &String)| self.buckets.get(&(namespace.to_owned(), k.clone(), v.clone()));
        let rarest = selector.iter().map(bucket).min_by_key(|b| b.map_or(0, BTreeSet::len));
        rarest.flatten().into_iter().flatten()
    }
}

/// Selectors (plain maps, as Services have them) by the labels that they ask for.
#[derive(Default)]
pub struct SelectorIndex {
    selectors: HashMap<ObjectKey, (Pair, Labels)>,
    /// Each selector stands under one of its labels: the one that the fewest others stood under.
    buckets: HashMap<Pair, BTreeSet<ObjectKey>>,
}

impl SelectorIndex {
    /// The object has this selector now; none or an empty one selects nothing.
    pub fn set(&mut self, key: &ObjectKey, selector: Option<Labels>) {
        if let Some((pair, old)) = self.selectors.remove(key) {
            if Some(&old) == selector.as_ref() {
                self.selectors.insert(key.clone(), (pair, old));
                return;
            }
            if let Some(bucket) = self.buckets.get_mut(&pair) {
                bucket.remove(key);
                if bucket.is_empty() {
                    self.buckets.remove(&pair);
                }
            }
        }
        let Some(selector) = selector else { return };
        let crowd = |pair: &Pair| self.buckets.get(pair).map_or(0, BTreeSet::len);
        let Some(pair) = pairs(key, &selector).into_iter().min_by_key(crowd) else { return };
        self.buckets.entry(pair.clone()).or_default().insert(key.clone());
        self.selectors.insert(key.clone(), (pair, selector));
    }

    /// What selects an object of this namespace with these labels.
    pub fn matching(&self, object: &ObjectKey, labels: &Labels) -> BTreeSet<ObjectKey> {
        let all = pairs(object, labels).into_iter().filter_map(|pair| self.buckets.get(&pair)).flatten();
        all.filter(|key| {
            self.selectors.get(*key).is_some_and(|(_, s)| s.iter().all(|(k, v)| labels.get(k) == Some(v)))
        })
        .cloned()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{PODS, SERVICES};
    use proptest::prelude::*;

    use super::*;

    fn labels() -> impl Strategy<Value = Labels> {
        proptest::collection::btree_map("[ab]", "[xy]", 0..3)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn both_indexes_find_what_a_look_at_everything_finds(
            steps in proptest::collection::vec((any::<bool>(), 0_u8..4, labels()), 1..40),
        ) {
            let (mut by_label, mut by_selector) = (LabelIndex::default(), SelectorIndex::default());
            let (mut pods, mut services) = (BTreeMap::new(), BTreeMap::new());
            for (is_pod, n, labels) in steps {
                let name = format!("n{n}");
                if is_pod {
                    let key = ObjectKey::namespaced(&PODS, "default", &name);
                    let old = pods.insert(key.clone(), labels.clone()).unwrap_or_default();
                    by_label.set(&key, &old, &labels);
                } else {
                    let key = ObjectKey::namespaced(&SERVICES, "default", &name);
                    by_selector.set(&key, Some(labels.clone()));
                    services.insert(key, labels);
                }
                let selects = |s: &Labels, p: &Labels| !s.is_empty() && s.iter().all(|(k, v)| p.get(k) == Some(v));
                for (pod, have) in &pods {
                    let found = by_selector.matching(pod, have);
                    let all: BTreeSet<ObjectKey> =
                        services.iter().filter(|(_, s)| selects(s, have)).map(|(k, _)| k.clone()).collect();
                    prop_assert_eq!(found, all);
                }
                for selector in services.values().filter(|s| !s.is_empty()) {
                    let found: BTreeSet<_> = by_label.candidates("default", selector).collect();
                    prop_assert!(pods.iter().all(|(k, p)| !selects(selector, p) || found.contains(k)));
                    prop_assert!(found.iter().all(|k| selector.iter().any(|(l, v)| pods[*k].get(l) == Some(v))));
                }
            }
        }
    }
}
