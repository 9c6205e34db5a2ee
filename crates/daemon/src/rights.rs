//! Who may ask for what.
//!
//! Three rights, each held by user ids and group ids: *create* makes volumes, *attach* uses them,
//! *administer* changes and deletes them and manages keys. Looking needs any of the three. The key
//! child enforces the same three once more ([`Right::permits`]), so a mistake here alone does not
//! hand a key to somebody who may only create.
//!
//! What always holds: root and the daemon's own user hold all three unless the configuration says
//! otherwise; a group counts only as the peer's *primary* group, because that is what the kernel
//! tells of a peer.

use sealvol_control::keychild::Right;
use serde::{Deserialize, Serialize};

/// Whoever is at the other end of a control connection, as the kernel says (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Caller {
    /// Effective user id when it connected.
    pub uid: u32,
    /// Effective group id when it connected.
    pub gid: u32,
    /// Process id; none for a process of another namespace.
    pub pid: Option<i32>,
}

/// Who holds one right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Holders {
    /// User ids.
    pub uids: Vec<u32>,
    /// Primary group ids.
    pub gids: Vec<u32>,
}

impl Holders {
    fn include(&self, caller: Caller) -> bool {
        self.uids.contains(&caller.uid) || self.gids.contains(&caller.gid)
    }
}

/// Who holds which right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Make volumes.
    pub create: Holders,
    /// Attach and detach volumes.
    pub attach: Holders,
    /// Change and delete volumes, manage keys.
    pub administer: Holders,
}

impl Rights {
    /// Root and `uid` hold everything.
    pub(crate) fn of_root_and(uid: u32) -> Self {
        let mut uids = vec![0, uid];
        uids.dedup();
        let all = Holders {
            uids,
            gids: Vec::new(),
        };
        Self {
            create: all.clone(),
            attach: all.clone(),
            administer: all,
        }
    }

    /// Whether `caller` holds `right`.
    pub(crate) fn hold(&self, caller: Caller, right: Right) -> bool {
        match right {
            Right::Create => &self.create,
            Right::Attach => &self.attach,
            Right::Administer => &self.administer,
        }
        .include(caller)
    }

    /// Whether `caller` may look at what there is.
    pub(crate) fn may_look(&self, caller: Caller) -> bool {
        [Right::Create, Right::Attach, Right::Administer]
            .into_iter()
            .any(|right| self.hold(caller, right))
    }
}

/// The right in one word, as the configuration and messages have it.
pub(crate) fn word(right: Right) -> &'static str {
    match right {
        Right::Create => "create",
        Right::Attach => "attach",
        Right::Administer => "administer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(uid: u32, gid: u32) -> Caller {
        Caller {
            uid,
            gid,
            pid: Some(1),
        }
    }

    const ALL: [Right; 3] = [Right::Create, Right::Attach, Right::Administer];

    #[test]
    fn root_and_the_own_user_hold_everything_by_default() {
        let rights = Rights::of_root_and(970);
        for right in ALL {
            assert!(rights.hold(caller(0, 5), right));
            assert!(rights.hold(caller(970, 5), right));
            assert!(
                !rights.hold(caller(1000, 0), right),
                "group root is not root"
            );
        }
        assert!(!rights.may_look(caller(1000, 1000)));
    }

    #[test]
    fn the_three_rights_are_separate() {
        let only = |uid| Holders {
            uids: vec![uid],
            gids: vec![uid + 1000],
        };
        let rights = Rights {
            create: only(1),
            attach: only(2),
            administer: only(3),
        };
        for (uid, held) in [
            (1, Right::Create),
            (2, Right::Attach),
            (3, Right::Administer),
        ] {
            for right in ALL {
                assert_eq!(
                    rights.hold(caller(uid, 9), right),
                    right == held,
                    "{uid} {right:?}"
                );
                assert_eq!(rights.hold(caller(9, uid + 1000), right), right == held);
            }
            assert!(rights.may_look(caller(uid, 9)));
        }
        assert!(
            !rights.hold(caller(0, 0), Right::Attach),
            "configured rights replace the default"
        );
    }
}
