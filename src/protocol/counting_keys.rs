//! Decoding an object while counting its keys, for the two messages whose meaning depends on how many there are.
//!
//! The count is taken in passing, so that an error still knows the path to the field it is about.

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, MapAccess};

/// The object as a `T`, or why it is none; and how many keys had been read by then.
pub(crate) fn object<'de, T: Deserialize<'de>, A: MapAccess<'de>>(map: A) -> (Result<T, A::Error>, usize) {
    let mut count = 0;
    let value = T::deserialize(MapAccessDeserializer::new(Counting { map, count: &mut count }));
    (value, count)
}

struct Counting<'a, A> {
    map: A,
    count: &'a mut usize,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Counting<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let key = self.map.next_key_seed(seed)?;
        *self.count += usize::from(key.is_some());
        Ok(key)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}
