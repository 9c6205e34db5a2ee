//! Names of files, as they are and as they would be after a crash.

use std::collections::{BTreeMap, BTreeSet};

use super::journal::Covers;
use super::random::Random;

/// A file, whatever it is called.
pub(super) type FileId = u64;

/// Directory and name.
type Name = (String, String);
type Names = BTreeMap<Name, FileId>;

#[derive(Clone)]
enum Change {
    Create(Name, FileId),
    Rename(Name, Name),
    Remove(Name),
}

/// The names on a disk.
#[derive(Default)]
pub(super) struct Namespace {
    current: Names,
    durable: Names,
    /// What leads from `durable` to `current`, with the operations that did it.
    unsynced: Vec<(u64, Change)>,
}

impl Namespace {
    pub(super) fn find(&self, directory: &str, name: &str) -> Option<FileId> {
        self.current.get(&key(directory, name)).copied()
    }

    pub(super) fn list(&self, directory: &str) -> Vec<String> {
        let of_directory = self.current.keys().filter(|(of, _)| of == directory);
        of_directory.map(|(_, name)| name.clone()).collect()
    }

    /// Returns false if the name is taken.
    pub(super) fn create(&mut self, id: u64, directory: &str, name: &str, file: FileId) -> bool {
        self.change(id, Change::Create(key(directory, name), file))
    }

    /// Returns false if there is no such name.
    pub(super) fn rename(&mut self, id: u64, directory: &str, from: &str, to: &str) -> bool {
        self.change(id, Change::Rename(key(directory, from), key(directory, to)))
    }

    /// Returns false if there is no such name.
    pub(super) fn remove(&mut self, id: u64, directory: &str, name: &str) -> bool {
        self.change(id, Change::Remove(key(directory, name)))
    }

    fn change(&mut self, id: u64, change: Change) -> bool {
        let possible = change.apply(&mut self.current);
        if possible {
            self.unsynced.push((id, change));
        }
        possible
    }

    /// Makes the covered changes in one directory durable.
    pub(super) fn sync(&mut self, directory: &str, covers: &Covers) {
        self.unsynced.retain(|(id, change)| {
            let synced = change.directory() == directory && covers.covers(*id);
            if synced {
                change.apply(&mut self.durable);
            }
            !synced
        });
    }

    /// Names after a crash: what is durable, and of the rest either a prefix (a journal in order)
    /// or any subset that makes sense in order.
    pub(super) fn crash(&mut self, random: &mut Random) {
        let unsynced = std::mem::take(&mut self.unsynced);
        let in_order = random.chance(1, 2);
        let prefix = random.index(unsynced.len() + 1);
        for (index, (_, change)) in unsynced.into_iter().enumerate() {
            let survives = if in_order {
                index < prefix
            } else {
                random.chance(1, 2)
            };
            if survives {
                change.apply(&mut self.durable);
            }
        }
        self.current = self.durable.clone();
    }

    /// Files that have a name now.
    pub(super) fn named(&self) -> BTreeSet<FileId> {
        self.current.values().copied().collect()
    }

    /// Files that have a name now or may have one after a crash.
    pub(super) fn reachable(&self) -> BTreeSet<FileId> {
        let created = self.unsynced.iter().filter_map(|(_, change)| match change {
            Change::Create(_, file) => Some(*file),
            _ => None,
        });
        self.current
            .values()
            .chain(self.durable.values())
            .copied()
            .chain(created)
            .collect()
    }
}

impl Change {
    fn directory(&self) -> &str {
        match self {
            Self::Create((directory, _), _)
            | Self::Rename((directory, _), _)
            | Self::Remove((directory, _)) => directory,
        }
    }

    /// Applies the change if what it builds on is there.
    fn apply(&self, names: &mut Names) -> bool {
        match self {
            Self::Create(name, file) => {
                let free = !names.contains_key(name);
                if free {
                    names.insert(name.clone(), *file);
                }
                free
            }
            Self::Rename(from, to) => match names.remove(from) {
                Some(file) => {
                    names.insert(to.clone(), file);
                    true
                }
                None => false,
            },
            Self::Remove(name) => names.remove(name).is_some(),
        }
    }
}

fn key(directory: &str, name: &str) -> Name {
    (directory.to_owned(), name.to_owned())
}
