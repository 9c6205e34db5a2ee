//! PKCS #11 URIs [RFC 7512]: names of a token and of a key in it.
//!
//! Of the attributes that the RFC has, those are taken that *select*; whoever names a key says nothing else. What loads code
//! (`module-path`, `module-name`) or holds a PIN or leads to one (`pin-source`, `pin-value`) is refused by name wherever it
//! stands, and so is whatever is not known: skipping it would select something else than was meant.
//!
//! What always holds: an attribute that exists was written once, in the characters that the RFC allows; an error quotes the
//! name of an attribute and never a value, since a value may be a PIN.

use std::fmt::Write as _;

/// What every URI begins with.
pub const SCHEME: &str = "pkcs11:";

/// What a URI selects. An attribute that is not there selects nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pkcs11Uri {
    /// `CKA_ID` of an object.
    pub id: Option<Vec<u8>>,
    /// Of a token.
    pub manufacturer: Option<String>,
    /// Of a token.
    pub model: Option<String>,
    /// `CKA_LABEL` of an object.
    pub object: Option<String>,
    /// Of a token.
    pub serial: Option<String>,
    /// The label of a token.
    pub token: Option<String>,
}

/// Why a text names no key and no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Pkcs11UriError {
    /// A character that has to be percent-encoded there.
    #[error("pkcs11 URI: {found:?} in {name}; write it as %xx")]
    Character {
        /// The attribute.
        name: String,
        /// The first such character.
        found: char,
    },
    /// An attribute stands there twice.
    #[error("pkcs11 URI: {name} stands in it twice; which one counts would depend on the reader")]
    Duplicate {
        /// The attribute.
        name: String,
    },
    /// An attribute selects by nothing.
    #[error("pkcs11 URI: {name} is empty; leave it out")]
    Empty {
        /// The attribute.
        name: String,
    },
    /// A percent sign without two hexadecimal digits.
    #[error("pkcs11 URI: a % in {name} is not followed by two hexadecimal digits")]
    Escape {
        /// The attribute.
        name: String,
    },
    /// It would load code, or give a PIN.
    #[error(
        "pkcs11 URI: {name} is refused: modules and PINs are named in the daemon's configuration only"
    )]
    Forbidden {
        /// The attribute.
        name: &'static str,
    },
    /// An attribute without a value.
    #[error("pkcs11 URI: an attribute has no `=`; write NAME=VALUE, separated by `;`")]
    NoValue,
    /// It begins otherwise.
    #[error("pkcs11 URI: does not begin with {SCHEME}")]
    Scheme,
    /// It selects by the number of a slot.
    #[error(
        "pkcs11 URI: {name} is refused: slots are numbered anew when tokens come and go; name the token"
    )]
    Slot {
        /// The attribute.
        name: String,
    },
    /// Bytes that are no text, where text is meant.
    #[error("pkcs11 URI: {name} is not UTF-8")]
    Text {
        /// The attribute.
        name: String,
    },
    /// It selects an object that cannot wrap.
    #[error("pkcs11 URI: type is another than secret-key: nothing else wraps volume keys")]
    Type,
    /// An attribute that is not known here.
    #[error(
        "pkcs11 URI: {name} is not known; token, manufacturer, model, serial, object, id and type are"
    )]
    Unknown {
        /// The attribute.
        name: String,
    },
}

/// What would load code, or hold or lead to a PIN.
const FORBIDDEN: [&str; 4] = ["module-name", "module-path", "pin-source", "pin-value"];

/// Most characters of a name in an error.
const NAME_MAX: usize = 40;

impl Pkcs11Uri {
    /// What `text` selects.
    ///
    /// # Errors
    /// When it is no such URI, or one that is refused.
    pub fn parse(text: &str) -> Result<Self, Pkcs11UriError> {
        let rest = text.strip_prefix(SCHEME).ok_or(Pkcs11UriError::Scheme)?;
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let mut uri = Self::default();
        let mut object_type = None;
        for attribute in path.split(';').filter(|_| !path.is_empty()) {
            let (name, value) = attribute.split_once('=').ok_or(Pkcs11UriError::NoValue)?;
            refuse(name)?;
            let text = |field: &mut Option<String>| {
                let bytes = decoded(name, value)?;
                let text = String::from_utf8(bytes)
                    .map_err(|_| Pkcs11UriError::Text { name: shown(name) })?;
                once(name, field, text)
            };
            match name {
                "id" => once(name, &mut uri.id, decoded(name, value)?)?,
                "manufacturer" => text(&mut uri.manufacturer)?,
                "model" => text(&mut uri.model)?,
                "object" => text(&mut uri.object)?,
                "serial" => text(&mut uri.serial)?,
                "token" => text(&mut uri.token)?,
                "type" => text(&mut object_type)?,
                _ => return Err(unknown(name)),
            }
        }
        // Nothing in a query selects.
        if let Some(query) = query {
            let name = query.split(['=', '&']).next().unwrap_or_default();
            query
                .split('&')
                .filter_map(|attribute| attribute.split('=').next())
                .try_for_each(refuse)?;
            return Err(unknown(name));
        }
        match object_type.as_deref() {
            None | Some("secret-key") => Ok(uri),
            Some(_) => Err(Pkcs11UriError::Type),
        }
    }

    /// Whether it names a key: by label, id or both.
    #[must_use]
    pub fn names_object(&self) -> bool {
        self.object.is_some() || self.id.is_some()
    }

    /// The URI of a key: by its id, which outlasts a change of its label, or by its label if it has none.
    #[must_use]
    pub fn of_key(id: &[u8], label: &str) -> String {
        let mut text = SCHEME.to_owned();
        if id.is_empty() {
            text.push_str("object=");
            encode(&mut text, label.as_bytes(), |byte| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
            });
        } else {
            // The RFC wants every byte of an id percent-encoded.
            text.push_str("id=");
            encode(&mut text, id, |_| false);
        }
        text
    }
}

fn encode(text: &mut String, bytes: &[u8], plain: impl Fn(u8) -> bool) {
    for &byte in bytes {
        if plain(byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02x}").expect("writing to a string does not fail");
        }
    }
}

/// Refuses an attribute for what it would do, wherever it stands.
fn refuse(name: &str) -> Result<(), Pkcs11UriError> {
    if let Some(name) = FORBIDDEN.into_iter().find(|forbidden| *forbidden == name) {
        return Err(Pkcs11UriError::Forbidden { name });
    }
    if name.starts_with("slot-") {
        return Err(Pkcs11UriError::Slot { name: shown(name) });
    }
    Ok(())
}

fn unknown(name: &str) -> Pkcs11UriError {
    Pkcs11UriError::Unknown { name: shown(name) }
}

/// A name as an error has it: what is in its place may be a value that somebody forgot to name.
fn shown(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || matches!(c, '-' | '_');
    if !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(plain) {
        format!("`{name}`")
    } else {
        "an attribute".to_owned()
    }
}

fn once<T>(name: &str, field: &mut Option<T>, value: T) -> Result<(), Pkcs11UriError> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(Pkcs11UriError::Duplicate { name: shown(name) }),
    }
}

/// The bytes of a value [RFC 7512, section 2.3: `pk11-pchar`].
fn decoded(name: &str, value: &str) -> Result<Vec<u8>, Pkcs11UriError> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '%' => {
                let mut digit = || characters.next().and_then(|c| c.to_digit(16));
                let byte = digit().zip(digit()).map(|(high, low)| high * 16 + low);
                let byte = byte.and_then(|byte| u8::try_from(byte).ok());
                bytes.push(byte.ok_or_else(|| Pkcs11UriError::Escape { name: shown(name) })?);
            }
            plain if plain.is_ascii_alphanumeric() || "-._~:[]@!$'()*+,=&".contains(plain) => {
                bytes.push(u8::try_from(plain).unwrap_or_default());
            }
            found => {
                let name = shown(name);
                return Err(Pkcs11UriError::Character { name, found });
            }
        }
    }
    if bytes.is_empty() {
        return Err(Pkcs11UriError::Empty { name: shown(name) });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> Pkcs11UriError {
        Pkcs11Uri::parse(text).expect_err(text)
    }

    #[test]
    fn each_attribute_that_selects_is_understood() {
        let uri = Pkcs11Uri::parse(
            "pkcs11:token=The%20token;manufacturer=Snake%20Oil,%20Inc.;model=1.0;serial=DECAFBAD;\
             object=my-%c3%BCber;id=%69%95%3e%5C%f4;type=secret-key",
        );
        let meant = Pkcs11Uri {
            id: Some(b"\x69\x95\x3e\x5c\xf4".to_vec()),
            manufacturer: Some("Snake Oil, Inc.".to_owned()),
            model: Some("1.0".to_owned()),
            object: Some("my-über".to_owned()),
            serial: Some("DECAFBAD".to_owned()),
            token: Some("The token".to_owned()),
        };
        assert_eq!(uri, Ok(meant));
        let plain = Pkcs11Uri::parse("pkcs11:object=a:[]@!$'()*+,=&-._~").unwrap();
        assert_eq!(plain.object.as_deref(), Some("a:[]@!$'()*+,=&-._~"));
        assert_eq!(Pkcs11Uri::parse("pkcs11:"), Ok(Pkcs11Uri::default()));
    }

    #[test]
    fn what_loads_code_or_leads_to_a_pin_is_refused_wherever_it_stands() {
        for name in FORBIDDEN {
            for text in [
                format!("pkcs11:object=k?{name}=/x"),
                format!("pkcs11:object=k;{name}=/x"),
                format!("pkcs11:{name}=/x"),
                format!("pkcs11:?{name}=/x"),
                format!("pkcs11:object=k?x-vendor=1&{name}=/x"),
                format!("pkcs11:object=k?{name}"),
            ] {
                assert_eq!(refused(&text), Pkcs11UriError::Forbidden { name }, "{text}");
            }
        }
    }

    #[test]
    fn no_error_quotes_a_value() {
        for text in [
            "pkcs11:object=k?pin-value=s3cr3t",
            "pkcs11:pin-value=s3cr3t",
            "pkcs11:object=k?s3cr3t",
            "pkcs11:s3cr3t=1",
            "pkcs11:s3cr3t",
            "pkcs11:object=s3cr3t%",
            "pkcs11:object=s3cr3t;object=s3cr3t",
            "pkcs11:object=s3cr3t/",
            "pkcs11:x-other=s3cr3t",
            "pkcs11:type=s3cr3t",
            "pkcs12:s3cr3t",
        ] {
            let error = refused(text);
            assert!(!error.to_string().contains("s3cr3t"), "{error}");
        }
    }

    #[test]
    fn what_is_written_wrongly_or_twice_or_not_known_is_refused() {
        let name = |name: &str| format!("`{name}`");
        for (text, error) in [
            ("object=k", Pkcs11UriError::Scheme),
            ("PKCS11:object=k", Pkcs11UriError::Scheme),
            ("pkcs11:object", Pkcs11UriError::NoValue),
            ("pkcs11:object=k;", Pkcs11UriError::NoValue),
            ("pkcs11:;object=k", Pkcs11UriError::NoValue),
            (
                "pkcs11:object=a;object=a",
                Pkcs11UriError::Duplicate {
                    name: name("object"),
                },
            ),
            (
                "pkcs11:id=%01;id=%02",
                Pkcs11UriError::Duplicate { name: name("id") },
            ),
            (
                "pkcs11:type=secret-key;type=secret-key",
                Pkcs11UriError::Duplicate { name: name("type") },
            ),
            (
                "pkcs11:object=",
                Pkcs11UriError::Empty {
                    name: name("object"),
                },
            ),
            (
                "pkcs11:object=%",
                Pkcs11UriError::Escape {
                    name: name("object"),
                },
            ),
            (
                "pkcs11:object=%4",
                Pkcs11UriError::Escape {
                    name: name("object"),
                },
            ),
            ("pkcs11:id=%4g", Pkcs11UriError::Escape { name: name("id") }),
            (
                "pkcs11:object=%ff",
                Pkcs11UriError::Text {
                    name: name("object"),
                },
            ),
            (
                "pkcs11:object=a/b",
                Pkcs11UriError::Character {
                    name: name("object"),
                    found: '/',
                },
            ),
            (
                "pkcs11:object=a b",
                Pkcs11UriError::Character {
                    name: name("object"),
                    found: ' ',
                },
            ),
            ("pkcs11:type=private", Pkcs11UriError::Type),
            (
                "pkcs11:slot-id=1",
                Pkcs11UriError::Slot {
                    name: name("slot-id"),
                },
            ),
            (
                "pkcs11:library-version=3",
                Pkcs11UriError::Unknown {
                    name: name("library-version"),
                },
            ),
            (
                "pkcs11:Object=k",
                Pkcs11UriError::Unknown {
                    name: "an attribute".to_owned(),
                },
            ),
            (
                "pkcs11:object=k?",
                Pkcs11UriError::Unknown {
                    name: "an attribute".to_owned(),
                },
            ),
            (
                "pkcs11:object=k?x-vendor=1",
                Pkcs11UriError::Unknown {
                    name: name("x-vendor"),
                },
            ),
        ] {
            assert_eq!(refused(text), error, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_uri_of_a_key_names_that_key(id: Vec<u8>, label in ".+") {
            let text = Pkcs11Uri::of_key(&id, &label);
            prop_assert!(text.chars().all(|c| c.is_ascii_graphic()));
            let uri = Pkcs11Uri::parse(&text).unwrap();
            let (id, label) = if id.is_empty() { (None, Some(label)) } else { (Some(id), None) };
            prop_assert_eq!(uri, Pkcs11Uri { id, object: label, ..Pkcs11Uri::default() });
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = Pkcs11Uri::parse(&text);
            let _ = Pkcs11Uri::parse(&format!("{SCHEME}{text}"));
        }
    }
}
