//! What the static buildpack and its file server both know of a site's files: their tags and their types.

mod index;
pub mod media_type;

pub use index::Index;
