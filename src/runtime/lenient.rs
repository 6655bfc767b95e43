//! JSON in which everything is optional: a field of an unexpected type is `None`, never an error.
//!
//! serde's own derive fails a whole list for one odd field of one row. Here a row is lost only if the text is
//! not JSON at all. No value is buffered: what is not wanted is skipped by the parser.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A value of the type that was expected, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lenient<T>(pub(crate) Option<T>);

impl<T> Default for Lenient<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl Lenient<String> {
    /// The text, or `""`.
    pub(crate) fn text(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

impl<T: Default> Lenient<T> {
    /// The value, or its type's default.
    pub(crate) fn or_default(self) -> T {
        self.0.unwrap_or_default()
    }
}

/// What a JSON value may become. Each shape that is not taken is `None`.
pub(crate) trait Shape: Sized {
    /// From a string.
    fn from_text(_text: &str) -> Option<Self> {
        None
    }
    /// From a whole number.
    fn from_integer(_number: i64) -> Option<Self> {
        None
    }
    /// From a boolean.
    fn from_flag(_flag: bool) -> Option<Self> {
        None
    }
    /// From an object.
    fn from_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
    /// From an array.
    fn from_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Option<Self>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl Shape for String {
    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Shape for i64 {
    fn from_integer(number: i64) -> Option<Self> {
        Some(number)
    }
}

impl Shape for bool {
    fn from_flag(flag: bool) -> Option<Self> {
        Some(flag)
    }
}

impl<T: Shape> Shape for Vec<T> {
    fn from_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Option<Self>, A::Error> {
        let mut items = Self::new();
        while let Some(item) = seq.next_element::<Lenient<T>>()? {
            items.extend(item.0);
        }
        Ok(Some(items))
    }
}

/// An object whose values are text, as labels are; other values are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TextMap(pub(crate) Vec<(String, String)>);

impl TextMap {
    /// The last value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}

impl Shape for TextMap {
    fn from_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Lenient<String>>()? {
            entries.extend(value.0.map(|value| (key, value)));
        }
        Ok(Some(Self(entries)))
    }
}

/// Lets a struct with `#[derive(Deserialize)]` and `#[serde(default)]`, whose fields are all [`Lenient`], be
/// the field of another.
macro_rules! object_shape {
    ($($name:ty),+ $(,)?) => {
        $(impl $crate::runtime::lenient::Shape for $name {
            fn from_map<'de, A: serde::de::MapAccess<'de>>(
                map: A,
            ) -> Result<Option<Self>, A::Error> {
                serde::Deserialize::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    .map(Some)
            }
        })+
    };
}
pub(crate) use object_shape;

impl<'de, T: Shape> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(ShapeVisitor(PhantomData))
            .map(Self)
    }
}

struct ShapeVisitor<T>(PhantomData<T>);

impl<'de, T: Shape> Visitor<'de> for ShapeVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(T::from_flag(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(T::from_integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(value).ok().and_then(T::from_integer))
    }

    fn visit_f64<E: de::Error>(self, _value: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(T::from_text(value))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::from_map(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        T::from_seq(seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Row {
        name: Lenient<String>,
        size: Lenient<i64>,
        on: Lenient<bool>,
        labels: Lenient<TextMap>,
        names: Lenient<Vec<String>>,
        inner: Lenient<Box1>,
    }

    #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(default)]
    struct Box1 {
        pid: Lenient<i64>,
    }
    object_shape!(Row, Box1);

    #[test]
    fn an_odd_field_costs_only_itself() -> Result<(), serde_json::Error> {
        let text = r#"[
            {"name":"a","size":1,"on":true,"labels":{"k":"v","n":3},"names":["x",4,"y"],"inner":{"pid":7}},
            {"name":["a"],"size":"1","on":null,"labels":[1,{"a":2}],"names":"x","inner":{"pid":{"a":[1.5]}}},
            17, null, "row", [[]],
            {"size":18446744073709551615,"name":{"a":{}}},
            {"name":"last"}
        ]"#;
        let rows: Vec<Lenient<Row>> = serde_json::from_str(text)?;
        let rows: Vec<Row> = rows.into_iter().filter_map(|row| row.0).collect();
        assert_eq!(rows.len(), 4);
        assert_eq!(rows[0].name.text(), "a");
        assert_eq!(rows[0].size.0, Some(1));
        assert_eq!(rows[0].on.0, Some(true));
        assert_eq!(
            rows[0].labels.0,
            Some(TextMap(vec![("k".to_owned(), "v".to_owned())]))
        );
        assert_eq!(rows[0].names.0, Some(vec!["x".to_owned(), "y".to_owned()]));
        assert_eq!(rows[0].inner.0.as_ref().and_then(|b| b.pid.0), Some(7));
        assert_eq!(rows[1].name.0, None);
        assert_eq!(rows[1].on.0, None);
        assert_eq!(rows[1].inner.0.as_ref().and_then(|b| b.pid.0), None);
        assert_eq!(rows[2].size.0, None);
        assert_eq!(rows[3].name.text(), "last");
        Ok(())
    }

    #[test]
    fn text_that_is_no_json_is_an_error() {
        assert!(serde_json::from_str::<Vec<Lenient<Row>>>(r#"[{"name":"a"}"#).is_err());
        assert!(serde_json::from_str::<Vec<Lenient<Row>>>(r#"{"message":"no"}"#).is_err());
    }
}
