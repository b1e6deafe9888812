//! Networks as data: a family, and what tells its members apart.
//!
//! Whatever reads a network goes by its [`Architecture`]: headers of files hold its JSON, in which `family` says whose
//! description it is and `version` which form of it.
//!
//! ```json
//! {"family": "resnet", "version": 1, "blocks": [3, 3, 3], "bottleneck": false, "stem": "3x3", "widths": [16, 32, 64]}
//! ```
//!
//! A family is a type that implements [`Family`], in a file of its own. Those in [`families`](super::families) are known from
//! the start; another one is from [`Architecture::register`] on, and is then read, merged and trained as they are.

use std::any::TypeId;
use std::fmt;
use std::sync::{Arc, RwLock};

use serde::de::DeserializeOwned;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::families::densenet::DenseNet;
use super::families::resnet::ResNet;
use super::families::vgg::Vgg;
use super::families::widened::Widened;
use super::stem::Stem;
use super::{Network, NetworkBuilder};
use crate::error::{Error, Result};

/// Everything that distinguishes one network of a family from another, but for its input channels and classes.
pub trait Family: Serialize + DeserializeOwned + fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The tag of its descriptions in files.
    const NAME: &'static str;
    /// The form of description that is written; older ones are read.
    const VERSION: u64 = 1;
    /// Networks that are known by name.
    const MEMBERS: &'static [&'static str] = &[];

    /// One of `MEMBERS`. `width` scales its filters; without a stem or a width, the usual ones.
    fn member(name: &str, stem: Option<Stem>, width: Option<usize>) -> Result<Self> {
        let _ = (stem, width);
        Err(Error::unknown("architecture", name, Self::MEMBERS.iter().copied()))
    }

    /// Brings a description of an older version to the form of today.
    fn upgrade(version: u64, description: Map<String, Value>) -> Result<Map<String, Value>, String> {
        let _ = version;
        Ok(description)
    }

    /// The name under which it is known, if any.
    fn name(&self) -> Option<&'static str> {
        None
    }

    /// Refuses sizes that no network has, before anything is laid out by them.
    fn check(&self, input_channels: usize) -> Result<(), String>;

    /// Adds all layers, from the input to the classifier.
    fn build(&self, b: &mut NetworkBuilder, classes: usize);

    /// The stem before the first stage, in families that have a choice.
    fn stem(&self) -> Option<Stem> {
        None
    }

    /// The same network with another stem; `None` where there is no choice.
    fn with_stem(&self, stem: Stem) -> Option<Self> {
        let _ = stem;
        None
    }

    /// The same network with its hidden fully connected layers as part of the head; `None` where it has none.
    fn with_new_hidden(&self) -> Option<Self> {
        None
    }
}

/// A network of any family.
#[derive(Clone)]
pub struct Architecture(Arc<dyn Member>);

/// A [`Family`]'s value whose type is forgotten.
trait Member: fmt::Debug + fmt::Display + Send + Sync {
    fn tag(&self) -> (&'static str, u64);
    fn description(&self) -> Map<String, Value>;
    fn name(&self) -> Option<&'static str>;
    fn check(&self, input_channels: usize) -> Result<(), String>;
    fn build(&self, b: &mut NetworkBuilder, classes: usize);
    fn stem(&self) -> Option<Stem>;
    fn with_stem(&self, stem: Stem) -> Option<Architecture>;
    fn with_new_hidden(&self) -> Option<Architecture>;
}

impl<F: Family> Member for F {
    fn tag(&self) -> (&'static str, u64) {
        (F::NAME, F::VERSION)
    }

    fn description(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(description)) => description,
            other => panic!("the description of {} is no object: {other:?}", F::NAME),
        }
    }

    fn name(&self) -> Option<&'static str> {
        Family::name(self)
    }

    fn check(&self, input_channels: usize) -> Result<(), String> {
        Family::check(self, input_channels)
    }

    fn build(&self, b: &mut NetworkBuilder, classes: usize) {
        Family::build(self, b, classes);
    }

    fn stem(&self) -> Option<Stem> {
        Family::stem(self)
    }

    fn with_stem(&self, stem: Stem) -> Option<Architecture> {
        Family::with_stem(self, stem).map(Architecture::from)
    }

    fn with_new_hidden(&self) -> Option<Architecture> {
        Family::with_new_hidden(self).map(Architecture::from)
    }
}

impl<F: Family> From<F> for Architecture {
    fn from(member: F) -> Architecture {
        Architecture(Arc::new(member))
    }
}

/// A family as far as it is known without any of its members.
#[derive(Clone, Copy)]
struct Known {
    id: TypeId,
    family: &'static str,
    version: u64,
    members: &'static [&'static str],
    member: fn(&str, Option<Stem>, Option<usize>) -> Result<Architecture>,
    read: fn(u64, Map<String, Value>) -> Result<Architecture, String>,
}

impl Known {
    const fn of<F: Family>() -> Known {
        Known {
            id: TypeId::of::<F>(),
            family: F::NAME,
            version: F::VERSION,
            members: F::MEMBERS,
            member: |name, stem, width| F::member(name, stem, width).map(Architecture::from),
            read: |version, description| {
                let description = F::upgrade(version, description)?;
                let member: F =
                    serde_json::from_value(Value::Object(description)).map_err(|error| error.to_string())?;
                Ok(Architecture::from(member))
            },
        }
    }
}

const BUILT_IN: [Known; 4] =
    [Known::of::<ResNet>(), Known::of::<DenseNet>(), Known::of::<Vgg>(), Known::of::<Widened>()];

/// Those of callers.
static REGISTERED: RwLock<Vec<Known>> = RwLock::new(Vec::new());

fn known() -> Vec<Known> {
    let registered = REGISTERED.read().expect("nobody panics while registering");
    BUILT_IN.iter().chain(registered.iter()).copied().collect()
}

impl Architecture {
    /// Makes a family known to everything in this process that reads or names networks. Once is enough; again changes nothing.
    ///
    /// # Panics
    /// If another family has its name.
    pub fn register<F: Family>() {
        let new = Known::of::<F>();
        let mut registered = REGISTERED.write().expect("nobody panics while registering");
        match BUILT_IN.iter().chain(registered.iter()).find(|known| known.family == new.family) {
            Some(known) => assert!(known.id == new.id, "two families are called {}", F::NAME),
            None => registered.push(new),
        }
    }

    /// Every name that [`Architecture::named`] knows.
    pub fn names() -> Vec<&'static str> {
        known().iter().flat_map(|known| known.members).copied().collect()
    }

    /// A network of that name. `width` is that of the first stage; without it, or without a stem, the usual one.
    pub fn named(name: &str, stem: Option<Stem>, width: Option<usize>) -> Result<Architecture> {
        match known().iter().find(|known| known.members.contains(&name)) {
            Some(known) => (known.member)(name, stem, width),
            None => Err(Error::unknown("architecture", name, Architecture::names())),
        }
    }

    /// The tag of its family.
    pub fn family(&self) -> &'static str {
        self.0.tag().0
    }

    /// It as a member of a family; `None` if it is of another one.
    pub(crate) fn as_family<F: Family>(&self) -> Option<F> {
        let description = (self.family() == F::NAME).then(|| Value::Object(self.0.description()))?;
        serde_json::from_value(description).ok()
    }

    /// The name under which it is known, if any.
    pub fn name(&self) -> Option<&'static str> {
        self.0.name()
    }

    /// Refuses sizes that no network has, before anything is laid out by them.
    pub fn check(&self, input_channels: usize) -> Result<(), String> {
        self.0.check(input_channels)
    }

    pub fn build(&self, input_channels: usize, classes: usize) -> Arc<Network> {
        let mut b = NetworkBuilder::new(input_channels);
        self.0.build(&mut b, classes);
        b.finish()
    }

    /// Adds all layers to a network that has none yet.
    pub(super) fn add_to(&self, b: &mut NetworkBuilder, classes: usize) {
        self.0.build(b, classes);
    }

    /// The stem before the first stage, in families that have a choice.
    pub fn stem(&self) -> Option<Stem> {
        self.0.stem()
    }

    /// The same network with another stem; `None` where its family has no choice.
    pub fn with_stem(&self, stem: Stem) -> Option<Architecture> {
        self.0.with_stem(stem)
    }

    /// The same network with its hidden fully connected layers as part of the head; `None` where it has none.
    pub fn with_new_hidden(&self) -> Option<Architecture> {
        self.0.with_new_hidden()
    }

    /// Its JSON, as headers of files have it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain data is JSON")
    }
}

impl PartialEq for Architecture {
    fn eq(&self, other: &Architecture) -> bool {
        self.0.tag() == other.0.tag() && self.0.description() == other.0.description()
    }
}

impl Eq for Architecture {}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Serialize for Architecture {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ((family, version), description) = (self.0.tag(), self.0.description());
        let mut map = serializer.serialize_map(Some(description.len() + 2))?;
        map.serialize_entry("family", family)?;
        map.serialize_entry("version", &version)?;
        description.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Architecture {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Architecture, D::Error> {
        let mut description = Map::deserialize(deserializer)?;
        let is_tagged = description.contains_key("family");
        let (family, version) = match (description.remove("family"), description.remove("version")) {
            // As files were before there was a second family.
            (None, None) => (ResNet::NAME.to_string(), 1),
            (Some(Value::String(family)), Some(Value::Number(version))) if version.is_u64() => {
                (family, version.as_u64().expect("just asked"))
            }
            _ => {
                let missing = if is_tagged { "its version is missing, or no number" } else { "it has no family" };
                return Err(serde::de::Error::custom(missing));
            }
        };
        let Some(known) = known().into_iter().find(|known| known.family == family) else {
            return Err(serde::de::Error::custom(format!("unknown family '{family}'")));
        };
        if !(1..=known.version).contains(&version) {
            let newest = known.version;
            let message = format!("version {version} of family '{family}', of which {newest} is the newest known here");
            return Err(serde::de::Error::custom(message));
        }
        (known.read)(version, description).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Architecture, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn descriptions_are_read_as_they_are_written() {
        let architecture = Architecture::named("resnet20", None, Some(4)).unwrap();
        let json = architecture.to_json();
        let expected =
            r#"{"family":"resnet","version":1,"blocks":[3,3,3],"bottleneck":false,"stem":"3x3","widths":[4,8,16]}"#;
        assert_eq!(json, expected);
        assert_eq!(read(&json).unwrap(), architecture);
        // As version 0.1.0 wrote it.
        let before = r#"{"bottleneck":false,"blocks":[3,3,3],"widths":[4,8,16],"stem":"3x3"}"#;
        assert_eq!(read(before).unwrap(), architecture);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let with = |tag: &str| read(&format!(r#"{{{tag}"bottleneck":false,"blocks":[1],"widths":[4],"stem":"3x3"}}"#));
        assert!(with(r#""family":"resnet","version":1,"#).is_ok());
        for (tag, says) in [
            (r#""family":"lenet","version":1,"#, "unknown family 'lenet'"),
            (r#""family":"resnet","version":2,"#, "version 2 of family 'resnet'"),
            (r#""family":"resnet","version":0,"#, "version 0 of family 'resnet'"),
            (r#""family":"resnet","version":"1","#, "its version is missing, or no number"),
            (r#""family":"resnet","#, "its version is missing, or no number"),
            (r#""version":1,"#, "it has no family"),
        ] {
            let error = with(tag).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(read(r#"{"family":"resnet","version":1}"#).unwrap_err().contains("missing field"));
    }
}
