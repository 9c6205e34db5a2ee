//! What a file in a [`Directory`](crate::Directory) may be called. One rule for all of them, so
//! that no model accepts what a file system refuses.

use std::path::Path;
use std::sync::Arc;

use crate::{Operation, Place, StoreError};

/// `NAME_MAX` of Linux (`limits.h`), in bytes.
const NAME_MAX: usize = 255;

/// The path of `name` in `directory`, if it is one path component.
pub(crate) fn path_in(
    directory: &Path,
    name: &str,
    operation: Operation,
) -> Result<Arc<Path>, StoreError> {
    let is_one_component = !name.is_empty()
        && name.len() <= NAME_MAX
        && name != "."
        && name != ".."
        && !name.contains(['/', '\0']);
    if is_one_component {
        Ok(directory.join(name).into())
    } else {
        let at = Place::whole(operation, &directory.into());
        Err(StoreError::InvalidName {
            at,
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_path_component_is_a_name() {
        let accepts = |name: &str| path_in(Path::new("d"), name, Operation::Open).is_ok();
        assert!(accepts("data"));
        assert!(accepts("..data"));
        assert!(accepts(&"x".repeat(255)));
        for name in ["", ".", "..", "a/b", "/", "../up", "a\0b", &"x".repeat(256)] {
            assert!(!accepts(name), "{name:?} was accepted");
        }
    }
}
