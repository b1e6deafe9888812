//! Patterns of names, in which numbers stand for others: `resnet.encoder.stages.{s}.layers.{i}` and `layer{s+1}.{i}` name one
//! block in two ways, and either can be made of the other.
//!
//! A component of a name is a text, or a text with a number behind it: `{x}`, or `{x+1}` where the number counts from one. A
//! `*` at the end stands for all that follows.

use std::collections::BTreeMap;

/// The numbers that a name's variables stand for, and what its `*` does.
#[derive(Default)]
struct Found<'a> {
    numbers: BTreeMap<&'a str, usize>,
    rest: &'a str,
}

/// A variable of a component: the text before it, its name, and what is added to it.
fn variable(component: &str) -> Option<(&str, &str, usize)> {
    let (text, variable) = component.strip_suffix('}')?.split_once('{')?;
    match variable.split_once('+') {
        Some((name, more)) => Some((text, name, more.parse().expect("a pattern adds a number"))),
        None => Some((text, variable, 0)),
    }
}

fn matches<'a>(name: &'a str, pattern: &'a str) -> Option<Found<'a>> {
    let (mut found, mut rest) = (Found::default(), Some(name));
    for component in pattern.split('.') {
        if component == "*" {
            found.rest = rest.take()?;
            return Some(found);
        }
        let (own, behind) = match rest?.split_once('.') {
            Some((own, behind)) => (own, Some(behind)),
            None => (rest?, None),
        };
        rest = behind;
        match variable(component) {
            None if own == component => {}
            None => return None,
            Some((text, variable, more)) => {
                let digits = own.strip_prefix(text)?;
                // As it would be written again: no sign, no zeros in front.
                let number: usize = digits.parse().ok().filter(|number: &usize| number.to_string() == digits)?;
                found.numbers.insert(variable, number.checked_sub(more)?);
            }
        }
    }
    rest.is_none().then_some(found)
}

/// The name that `to` makes of one that `from` matches.
pub(super) fn translate(name: &str, from: &str, to: &str) -> Option<String> {
    let found = matches(name, from)?;
    let components = to.split('.').map(|component| match variable(component) {
        _ if component == "*" => found.rest.to_string(),
        None => component.to_string(),
        Some((text, variable, more)) => format!("{text}{}", found.numbers[variable] + more),
    });
    Some(components.collect::<Vec<_>>().join("."))
}

/// The part of a name before its components that match `pattern`; `None` if they do not.
pub(super) fn prefix<'a>(name: &'a str, pattern: &str) -> Option<&'a str> {
    let starts = [0].into_iter().chain(name.match_indices('.').map(|(dot, _)| dot + 1));
    starts.into_iter().find(|&start| matches(&name[start..], pattern).is_some()).map(|start| &name[..start])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated_to_and_fro() {
        let (theirs, ours) = ("stages.{s}.layers.{i}.layer.{j}.convolution.*", "layer{s+1}.{i}.conv{j+1}.*");
        let (name, other) = ("stages.0.layers.12.layer.2.convolution.weight", "layer1.12.conv3.weight");
        assert_eq!(translate(name, theirs, ours).as_deref(), Some(other));
        assert_eq!(translate(other, ours, theirs).as_deref(), Some(name));
        // Numbers count from one there; and the whole name has to match.
        for odd in ["layer0.1.conv1.weight", "layer01.1.conv1.weight", "layer1.1.conv1", "layer1.x.conv1.weight", ""] {
            assert_eq!(translate(odd, ours, theirs), None, "{odd}");
        }
        assert_eq!(translate("a.b", "a", "c"), None);
        assert_eq!(translate("a", "a.b", "c"), None);
    }

    #[test]
    fn prefixes_end_at_a_dot() {
        assert_eq!(prefix("x.y.layer1.0.conv1.weight", "layer1.0.conv1.weight"), Some("x.y."));
        assert_eq!(prefix("layer1.0.conv1.weight", "layer1.0.conv1.weight"), Some(""));
        assert_eq!(prefix("my_layer1.0.conv1.weight", "layer1.0.conv1.weight"), None);
    }
}
