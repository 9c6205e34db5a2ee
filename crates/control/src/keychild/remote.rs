//! What a key service elsewhere is configured with, whichever it is: where it is, how long a call to it may take, and two
//! credentials.
//!
//! What always holds: an [`Address`] names a host and a port and nothing else, and goes without TLS to this machine only.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// `https://HOST[:PORT]`, or `http://` with a host that is this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    /// Over TLS.
    pub secure: bool,
    /// A name or an IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl TryFrom<String> for Address {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let address = Self::parse(&text, PORT)?;
        if address.secure || address.is_here() {
            Ok(address)
        } else {
            Err(
                "http:// carries keys in the clear: it is for an agent on 127.0.0.1, [::1] or localhost only",
            )
        }
    }
}

impl Address {
    /// As it is written; `port` is meant where none is. It may go without TLS to other machines: see [`Self::try_from`].
    ///
    /// # Errors
    /// When it says something else than a host and a port.
    pub fn parse(text: &str, port: u16) -> Result<Self, &'static str> {
        let default_port = port;
        let (secure, authority) =
            match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
                (Some(rest), _) => (true, rest),
                (None, Some(rest)) => (false, rest),
                (None, None) => return Err("an address begins with https://"),
            };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest
                .split_once(']')
                .ok_or("an address has ] after the IPv6 address")?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port
                .parse()
                .map_err(|_| "the port of an address is a number to 65535")?,
            None if port.is_empty() => default_port,
            None => return Err("an address ends with its port"),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
        if host.is_empty() || !host.chars().all(allowed) || port == 0 {
            return Err("an address is https://HOST:PORT, without user, path or query");
        }
        Ok(Self {
            secure,
            host: host.to_owned(),
            port,
        })
    }

    pub(super) fn is_here(&self) -> bool {
        let ip: Option<IpAddr> = self.host.parse().ok();
        self.host == "localhost" || ip.is_some_and(|ip| ip.is_loopback())
    }

    /// Whether it is on this machine's own link (RFC 3927), where no router passes anything on.
    pub(super) fn is_on_link(&self) -> bool {
        let ip: Option<Ipv4Addr> = self.host.parse().ok();
        ip.is_some_and(|ip| ip.is_link_local())
    }

    /// Host and port, as a `Host` header has them: without the port that its scheme means anyhow.
    #[must_use]
    pub fn authority(&self) -> String {
        match (self.secure, self.port) {
            (true, 443) | (false, 80) => self.bracketed(),
            (_, port) => format!("{}:{port}", self.bracketed()),
        }
    }

    /// As URLs on it begin.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme(), self.authority())
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    fn bracketed(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme(), self.bracketed(), self.port)
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

/// Whether there are two credentials that differ, or the leave to use one for everything.
pub(super) fn two_credentials<C: PartialEq>(
    create: Option<&C>,
    attach: &C,
    single_credential: bool,
) -> Result<(), &'static str> {
    match (create, single_credential) {
        (None, false) => Err(
            "`create` is missing: name a credential that may not unwrap, or allow one for everything with \
             single-credential = true",
        ),
        (Some(_), true) => Err(
            "there is a `create`, so single-credential = true means nothing: take out one of them",
        ),
        (Some(create), false) if create == attach => Err(
            "`create` and `attach` are the same credential: give two, or say single-credential = true",
        ),
        _ => Ok(()),
    }
}

/// Seconds that a call has.
pub(super) fn timeout_s(written: Option<u8>) -> Result<u8, &'static str> {
    let seconds = written.unwrap_or(TIMEOUT_S);
    if (1..=60).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("`timeout-s` is from 1 to 60")
    }
}

/// Where OpenBao and Vault listen if nobody says otherwise.
const PORT: u16 = 8200;

/// A few attempts fit the daemon's ten seconds for a batch.
const TIMEOUT_S: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_a_host_and_nothing_else() {
        for (text, meant) in [
            ("https://bao.example", "https://bao.example:8200"),
            ("https://bao.example:443/", "https://bao.example:443"),
            ("https://10.0.0.1:1", "https://10.0.0.1:1"),
            ("https://[fd00::1]:8200", "https://[fd00::1]:8200"),
            ("http://127.0.0.1:8100", "http://127.0.0.1:8100"),
            ("http://[::1]", "http://[::1]:8200"),
            ("http://localhost:1", "http://localhost:1"),
        ] {
            let address = Address::try_from(text.to_owned()).expect(text);
            assert_eq!(address.to_string(), meant);
        }
        for text in [
            "",
            "bao.example",
            "ftp://bao.example",
            "https://",
            "https://:8200",
            "https://a:0",
            "https://a:65536",
            "https://a:b",
            "https://a/v1",
            "https://u@a",
            "https://a?x",
            "https://a#x",
            "https://[::1",
            "https://[::1]8200",
            "https://a b",
            "http://bao.example",
            "http://10.0.0.1",
        ] {
            assert!(Address::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
