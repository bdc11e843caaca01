//! A label selector that is bounded, unlike the one of Kubernetes, and replaced as a whole when applied.

use std::collections::BTreeMap;

use kube::KubeSchema;
use kube::core::{Expression, Selector};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Selects objects by their labels; all requirements must be met.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)"
).message("a selector must not be empty: set matchLabels or matchExpressions"))]
pub struct LabelSelector {
    /// Labels with exactly these values. At most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "match_labels_schema")]
    #[x_kube(validation = Rule::new("self.all(key, size(key) > 0 && size(key) <= 317)")
        .message("a label's key has 1 to 317 characters"))]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements on labels. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// A requirement on one label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)"
).message("In and NotIn need values, Exists and DoesNotExist take none"))]
pub struct LabelSelectorRequirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How the label relates to the values: In, NotIn, Exists or DoesNotExist.
    pub operator: LabelSelectorOperator,
    /// The values for In and NotIn. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub values: Vec<String>,
}

/// How a label relates to the values of a requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LabelSelectorOperator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is absent.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// A value of a newer release.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl LabelSelector {
    /// Whether the labels meet all requirements. A requirement that this release doesn't know is not met.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }

    /// The same selector, as the API server is asked for it.
    pub fn query(&self) -> Selector {
        let exact = self.match_labels.iter().map(|(key, value)| Expression::Equal(key.clone(), value.clone()));
        exact.chain(self.match_expressions.iter().filter_map(LabelSelectorRequirement::query)).collect()
    }

    /// Whether it has an operator of a newer release.
    pub fn has_unknown(&self) -> bool {
        self.match_expressions.iter().any(|r| r.operator == LabelSelectorOperator::Unknown)
    }
}

impl LabelSelectorRequirement {
    fn query(&self) -> Option<Expression> {
        let (key, values) = (self.key.clone(), self.values.iter().cloned().collect());
        Some(match self.operator {
            LabelSelectorOperator::In => Expression::In(key, values),
            LabelSelectorOperator::NotIn => Expression::NotIn(key, values),
            LabelSelectorOperator::Exists => Expression::Exists(key),
            LabelSelectorOperator::DoesNotExist => Expression::DoesNotExist(key),
            LabelSelectorOperator::Unknown => return None,
        })
    }

    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            LabelSelectorOperator::In => listed,
            LabelSelectorOperator::NotIn => !listed,
            LabelSelectorOperator::Exists => value.is_some(),
            LabelSelectorOperator::DoesNotExist => value.is_none(),
            LabelSelectorOperator::Unknown => false,
        }
    }
}

fn match_labels_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 63},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn requires(operator: LabelSelectorOperator, values: &[&str]) -> LabelSelector {
        let values = values.iter().map(|v| (*v).to_owned()).collect();
        let requirement = LabelSelectorRequirement { key: "team".to_owned(), operator, values };
        LabelSelector { match_expressions: vec![requirement], ..Default::default() }
    }

    #[test]
    fn labels_must_have_all_the_values() {
        let selector = LabelSelector { match_labels: labels(&[("a", "1"), ("b", "2")]), ..Default::default() };
        assert!(selector.matches(&labels(&[("a", "1"), ("b", "2"), ("c", "3")])));
        assert!(!selector.matches(&labels(&[("a", "1"), ("b", "x")])));
        assert!(!selector.matches(&labels(&[("a", "1")])));
    }

    #[test]
    fn operators_mean_what_they_mean_in_kubernetes() {
        use LabelSelectorOperator::*;
        let (shop, bank, none) = (labels(&[("team", "shop")]), labels(&[("team", "bank")]), labels(&[]));
        for (selector, expected) in [
            (requires(In, &["shop"]), [true, false, false]),
            (requires(NotIn, &["shop"]), [false, true, true]),
            (requires(Exists, &[]), [true, true, false]),
            (requires(DoesNotExist, &[]), [false, false, true]),
            (requires(Unknown, &[]), [false, false, false]),
        ] {
            assert_eq!([&shop, &bank, &none].map(|l| selector.matches(l)), expected, "{selector:?}");
        }
        assert!(requires(Unknown, &[]).has_unknown());
    }
}
