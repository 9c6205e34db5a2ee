//! The token as one batch uses it: module loaded, token found, logged in once.
//!
//! What always holds: a module is loaded only if nobody but root could have written it, and after this process was confined;
//! a PIN is given once, and not at all where another wrong one would lock the token.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11 as Module};
use cryptoki::error::Error;
use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use sealvol_control::keychild::{FailureClass, PIN_LOCKED, Pkcs11Service, WrapMechanism};
use sealvol_control::pkcs11_uri::Pkcs11Uri;

use super::verdict::refused;
use crate::Refusal;
use crate::refusal::Remote;

/// Bytes of the keys that wrap.
const KEY_BYTES: usize = 32;

/// A token that is logged in to.
pub(super) struct Token {
    pub(super) session: Session,
    pub(super) info: TokenInfo,
    pub(super) mechanism: WrapMechanism,
    slot: Slot,
    module: Module,
}

/// A key in it.
pub(super) struct Found {
    pub(super) handle: ObjectHandle,
    pub(super) label: String,
    pub(super) id: Vec<u8>,
    attributes: Vec<Attribute>,
}

impl Token {
    /// Loads `module`, which [`trusted_module`] gave, and logs in.
    pub(super) fn open(
        service: &Pkcs11Service,
        module: &Path,
        provider: &str,
        pin: &AuthPin,
    ) -> Result<Self, Remote> {
        let subject = format!("token of provider {provider}");
        let failed = |error: Error| refused(&error, &subject);
        let wanted = Pkcs11Uri::parse(&service.token)
            .map_err(|error| unusable(&subject, error.to_string()))?;
        let module = Module::new(module).map_err(failed)?;
        module
            .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
            .map_err(failed)?;
        let (mut found, mut unread) = (Vec::new(), None);
        for slot in module.get_slots_with_token().map_err(failed)? {
            match module.get_token_info(slot) {
                Ok(info) if info.token_initialized() && is(&wanted, &info) => {
                    found.push((slot, info));
                }
                Ok(_) => {}
                // What is wrong with another token is none of this one's business.
                Err(error) => unread = Some(error),
            }
        }
        let (slot, info) = match found.len() {
            1 => found.remove(0),
            0 => {
                return Err(unread.map(failed).unwrap_or_else(|| Remote {
                    class: FailureClass::Transient,
                    said: "TokenNotPresent".to_owned(),
                    reason: format!("none is there that {} names", service.token),
                    subject: subject.clone(),
                    retry_after: None,
                    next_step: "plug it in or start it; which are there tells pkcs11-tool --module MODULE -L",
                }));
            }
            several => {
                let reason = format!("{} names {several} tokens", service.token);
                return Err(unusable(&subject, reason));
            }
        };
        if info.user_pin_final_try() && !info.user_pin_locked() {
            return Err(Remote {
                class: FailureClass::Transient,
                said: PIN_LOCKED.to_owned(),
                reason: "another wrong PIN would lock it, so none is given".to_owned(),
                subject,
                retry_after: None,
                next_step: "see that `pin-file` has the right PIN, and log in with it once by hand: \
                            pkcs11-tool --module MODULE --token-label TOKEN --login -O",
            });
        }
        let session = module.open_ro_session(slot).map_err(failed)?;
        session.login(UserType::User, Some(pin)).map_err(failed)?;
        let mechanism = match service.mechanism {
            Some(chosen) => chosen,
            None => best(&module, slot, &subject)?,
        };
        Ok(Self {
            session,
            info,
            mechanism,
            slot,
            module,
        })
    }

    /// A session in which keys can be made. The login covers it.
    pub(super) fn writable(&self) -> Result<Session, Error> {
        self.module.open_rw_session(self.slot)
    }

    /// The keys that are called so: a label, or what a URI selects.
    pub(super) fn find(&self, label: Option<&str>, id: Option<&[u8]>) -> Result<Vec<Found>, Error> {
        let mut template = vec![
            Attribute::Token(true),
            Attribute::Class(ObjectClass::SECRET_KEY),
        ];
        template.extend(label.map(|label| Attribute::Label(label.as_bytes().to_vec())));
        template.extend(id.map(|id| Attribute::Id(id.to_vec())));
        let handles = self.session.find_objects(&template)?;
        handles
            .into_iter()
            .map(|handle| self.read(handle))
            .collect()
    }

    fn read(&self, handle: ObjectHandle) -> Result<Found, Error> {
        let attributes = self.session.get_attributes(
            handle,
            &[
                AttributeType::Label,
                AttributeType::Id,
                AttributeType::KeyType,
                AttributeType::ValueLen,
                AttributeType::Sensitive,
                AttributeType::Extractable,
                AttributeType::Encrypt,
                AttributeType::Decrypt,
                AttributeType::Wrap,
                AttributeType::Unwrap,
            ],
        )?;
        let mut found = Found {
            handle,
            label: String::new(),
            id: Vec::new(),
            attributes: Vec::new(),
        };
        for attribute in attributes {
            match attribute {
                Attribute::Label(label) => {
                    found.label = String::from_utf8_lossy(&label).into_owned();
                }
                Attribute::Id(id) => found.id = id,
                other => found.attributes.push(other),
            }
        }
        Ok(found)
    }
}

impl Found {
    fn has(&self, attribute: &Attribute) -> bool {
        self.attributes.contains(attribute)
    }

    /// Why it must not wrap, whatever is done to it.
    pub(super) fn unsuitable(&self) -> Option<&'static str> {
        let aes256 = self.has(&Attribute::KeyType(KeyType::AES))
            && self.has(&Attribute::ValueLen((KEY_BYTES as u64).into()));
        if !aes256 {
            Some("is no AES key of 256 bits")
        } else if !self.has(&Attribute::Sensitive(true))
            || !self.has(&Attribute::Extractable(false))
        {
            Some("can be taken out of the token: it is not sensitive, or extractable")
        } else {
            None
        }
    }

    /// Whether whoever looks after the token lets it be used.
    pub(super) fn enabled(&self, mechanism: WrapMechanism) -> bool {
        let uses = match mechanism {
            WrapMechanism::AesGcm => [Attribute::Encrypt(true), Attribute::Decrypt(true)],
            WrapMechanism::AesKeyWrapPad => [Attribute::Wrap(true), Attribute::Unwrap(true)],
        };
        uses.iter().all(|attribute| self.has(attribute))
    }
}

/// Whether `info` is of the token that `uri` selects.
pub(super) fn is(uri: &Pkcs11Uri, info: &TokenInfo) -> bool {
    [
        (&uri.token, info.label()),
        (&uri.manufacturer, info.manufacturer_id()),
        (&uri.model, info.model()),
        (&uri.serial, info.serial_number()),
    ]
    .into_iter()
    .all(|(wanted, found)| wanted.as_ref().is_none_or(|wanted| wanted == found))
}

/// AES-GCM if the token has it whole, else AES-KEY-WRAP-PAD.
fn best(module: &Module, slot: Slot, subject: &str) -> Result<WrapMechanism, Remote> {
    let failed = |error: Error| refused(&error, subject);
    let has = module.get_mechanism_list(slot).map_err(failed)?;
    if has.contains(&MechanismType::AES_GCM) {
        let info = module
            .get_mechanism_info(slot, MechanismType::AES_GCM)
            .map_err(failed)?;
        if info.encrypt() && info.decrypt() {
            return Ok(WrapMechanism::AesGcm);
        }
    }
    if has.contains(&MechanismType::AES_KEY_WRAP_PAD) {
        return Ok(WrapMechanism::AesKeyWrapPad);
    }
    Err(unusable(
        subject,
        "has neither CKM_AES_GCM nor CKM_AES_KEY_WRAP_PAD".to_owned(),
    ))
}

fn unusable(subject: &str, reason: String) -> Remote {
    Remote {
        class: FailureClass::CallerBug,
        said: "ValidationException".to_owned(),
        subject: subject.to_owned(),
        reason,
        retry_after: None,
        next_step: "correct the provider in the configuration",
    }
}

/// The file of a module, with all links resolved, if nobody but root could have written or replaced it: it is code that this
/// process will run beside keys.
pub(super) fn trusted_module(path: &Path) -> Result<PathBuf, Refusal> {
    let system = |path: &Path, source| Refusal::system(path, source);
    let module = path.canonicalize().map_err(|source| system(path, source))?;
    for (number, part) in module.ancestors().enumerate() {
        let found = part.metadata().map_err(|source| system(part, source))?;
        let sticky = found.is_dir() && found.mode() & 0o1000 != 0;
        let reason = if number == 0 && !found.is_file() {
            "is not a regular file".to_owned()
        } else if found.uid() != 0 {
            format!(
                "belongs to user {}: a module is root's, and so is all above it",
                found.uid()
            )
        } else if found.mode() & 0o022 != 0 && !sticky {
            format!(
                "has mode {:04o}: others can change what is loaded",
                found.mode() & 0o7777
            )
        } else {
            continue;
        };
        return Err(Refusal::UnsafePlace {
            path: part.to_owned(),
            reason,
        });
    }
    Ok(module)
}
