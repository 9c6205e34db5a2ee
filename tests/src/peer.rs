//! One end of an NBD connection that says exactly what it is told to: whole conversations, pieces of them, or noise. What a
//! client library refuses to send, this sends.
//!
//! Always: whatever it waits for, it waits at most ten seconds, but for [`Peer::open_patiently`]. Never: a look into structured replies; who wants that takes libnbd.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

/// A block of the volume.
pub const BLOCK: usize = 4096;
/// The longest payload that the server announces.
pub const PAYLOAD_MAX: u32 = 32 << 20;
/// The longest range that a request can name.
pub const LENGTH_MAX: u32 = u32::MAX;

const GREETING_LEN: usize = 18;
const REPLY_LEN: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);

/// Commands and their flags, by the names of the specification.
pub mod command {
    /// `NBD_CMD_READ`.
    pub const READ: u16 = 0;
    /// `NBD_CMD_WRITE`.
    pub const WRITE: u16 = 1;
    /// `NBD_CMD_FLUSH`.
    pub const FLUSH: u16 = 3;
    /// `NBD_CMD_TRIM`.
    pub const TRIM: u16 = 4;
    /// `NBD_CMD_WRITE_ZEROES`.
    pub const WRITE_ZEROES: u16 = 6;
    /// `NBD_CMD_BLOCK_STATUS`.
    pub const BLOCK_STATUS: u16 = 7;
    /// `NBD_CMD_FLAG_FUA`.
    pub const FUA: u16 = 1 << 0;
    /// `NBD_CMD_FLAG_NO_HOLE`.
    pub const NO_HOLE: u16 = 1 << 1;
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

/// A connection.
#[derive(Debug)]
pub struct Peer {
    stream: Stream,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Peer {
    /// Connects and says nothing.
    ///
    /// # Errors
    /// The socket's.
    pub fn connect(address: &Address) -> io::Result<Self> {
        let stream = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Stream::Tcp(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Stream::Unix(stream)
            }
        };
        Ok(Self { stream })
    }

    /// Connects and negotiates the export `name`, with simple replies.
    ///
    /// # Errors
    /// The socket's; `InvalidData` if the server refuses or breaks the protocol.
    pub fn open(address: &Address, name: &str) -> io::Result<Self> {
        let mut peer = Self::connect(address)?;
        peer.take(GREETING_LEN)?;
        peer.send(&client_flags())?;
        peer.haggle(&option_go(name))?;
        Ok(peer)
    }

    /// The same, and waits as long as it takes a server in an emulated machine that others keep from its processors.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_patiently(address: &Address, name: &str) -> io::Result<Self> {
        let peer = Self::open(address, name)?;
        let patience = Some(12 * PATIENCE);
        match &peer.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(patience)?,
            Stream::Unix(stream) => stream.set_read_timeout(patience)?,
        }
        Ok(peer)
    }

    /// The same with structured replies and the context `base:allocation`: its requests may be BLOCK_STATUS, its replies
    /// are for nobody to read.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_structured(address: &Address, name: &str) -> io::Result<Self> {
        let mut peer = Self::connect(address)?;
        peer.take(GREETING_LEN)?;
        peer.send(&client_flags())?;
        peer.haggle(&option(8, &[]))?; // NBD_OPT_STRUCTURED_REPLY
        let mut context = counted(name);
        context.extend_from_slice(&1_u32.to_be_bytes());
        context.extend_from_slice(&counted("base:allocation"));
        peer.haggle(&option(10, &context))?; // NBD_OPT_SET_META_CONTEXT
        peer.haggle(&option_go(name))?;
        Ok(peer)
    }

    /// Sends an option and reads its replies up to `NBD_REP_ACK`.
    fn haggle(&mut self, option: &[u8]) -> io::Result<()> {
        self.send(option)?;
        loop {
            let head = self.take(20)?;
            let (kind, length) = (u32_at(&head, 12), u32_at(&head, 16));
            self.take(length as usize)?;
            match kind {
                1 => return Ok(()), // NBD_REP_ACK
                3 | 4 => {}         // NBD_REP_INFO, NBD_REP_META_CONTEXT
                refusal => return Err(invalid(format!("an option was refused: {refusal:#x}"))),
            }
        }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The socket's, `WouldBlock` if they are not taken in time.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        }
    }

    /// Sends as much of `bytes` as the socket takes without waiting; how much that is.
    ///
    /// # Errors
    /// The socket's.
    pub fn stuff(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.set_nonblocking(true)?;
        let mut sent = 0;
        let result = loop {
            let taken = match &mut self.stream {
                Stream::Tcp(stream) => stream.write(&bytes[sent..]),
                Stream::Unix(stream) => stream.write(&bytes[sent..]),
            };
            match taken {
                Ok(0) => break Ok(sent),
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(sent),
                Err(error) => break Err(error),
            }
        };
        self.set_nonblocking(false)?;
        result
    }

    /// Reads exactly `len` bytes.
    ///
    /// # Errors
    /// The socket's; `UnexpectedEof` if the server closes, `WouldBlock` if they don't come in time.
    pub fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read_exact(&mut bytes)?,
            Stream::Unix(stream) => stream.read_exact(&mut bytes)?,
        }
        Ok(bytes)
    }

    /// Whether the server has closed the connection, without waiting for it.
    ///
    /// # Panics
    /// If the socket can't be asked.
    pub fn is_closed(&mut self) -> bool {
        self.set_nonblocking(true).expect("a socket");
        let mut bytes = [0; 4096];
        let closed = loop {
            let read = match &mut self.stream {
                Stream::Tcp(stream) => stream.read(&mut bytes),
                Stream::Unix(stream) => stream.read(&mut bytes),
            };
            match read {
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) => break error.kind() != io::ErrorKind::WouldBlock,
            }
        };
        self.set_nonblocking(false).expect("a socket");
        closed
    }

    /// Closes so that the server sees a reset (on TCP) or the end (on a Unix socket).
    ///
    /// # Panics
    /// If the option can't be set.
    pub fn reset(self) {
        if let Stream::Tcp(stream) = &self.stream {
            set_socket_linger(stream, Some(Duration::ZERO)).expect("SO_LINGER");
        }
    }

    /// Ends the connection for all its descriptors.
    ///
    /// # Panics
    /// Never: it may have ended already.
    pub fn disconnect(&self) {
        // An error says that the server was faster.
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }

    /// One more descriptor of the same connection, to read in one thread and write in another.
    ///
    /// # Errors
    /// The socket's.
    pub fn try_clone(&self) -> io::Result<Self> {
        let stream = match &self.stream {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        };
        Ok(Self { stream })
    }

    /// The head of a simple reply: cookie and error.
    ///
    /// # Errors
    /// As [`Self::take`]; `InvalidData` if it is none.
    pub fn reply(&mut self) -> io::Result<(u64, u32)> {
        let head = self.take(REPLY_LEN)?;
        if u32_at(&head, 0) != 0x6744_6698 {
            return Err(invalid(format!("no simple reply: {head:02x?}")));
        }
        let cookie = head[8..].try_into().expect("eight bytes");
        Ok((u64::from_be_bytes(cookie), u32_at(&head, 4)))
    }

    /// One whole exchange without payload in the reply.
    ///
    /// # Errors
    /// As [`Self::reply`], and an error that the server answers.
    pub fn call(&mut self, request: &[u8]) -> io::Result<()> {
        self.send(request)?;
        match self.reply()? {
            (_, 0) => Ok(()),
            (_, errno) => Err(io::Error::from_raw_os_error(errno.cast_signed())),
        }
    }

    /// Reads from the export.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn read(&mut self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        self.call(&request(command::READ, 0, 1, offset, len))?;
        self.take(len as usize)
    }

    /// Writes to the export.
    ///
    /// # Errors
    /// As [`Self::call`].
    ///
    /// # Panics
    /// If `data` has 4 GiB or more.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let len = u32::try_from(data.len()).expect("a payload");
        let mut bytes = request(command::WRITE, 0, 1, offset, len).to_vec();
        bytes.extend_from_slice(data);
        self.call(&bytes)
    }

    /// Asserts that an ordinary client of `name` gets what it asks for, now.
    ///
    /// # Panics
    /// If it is not served within ten seconds a step, or not what it wrote.
    #[track_caller]
    pub fn served(address: &Address, name: &str) {
        let content = crate::pattern::bytes(7, BLOCK);
        let read = Self::open(address, name).and_then(|mut peer| {
            peer.write(0, &content)?;
            peer.flush()?;
            peer.read(0, 4096)
        });
        let read = read.unwrap_or_else(|error| panic!("an ordinary client is not served: {error}"));
        assert_eq!(read, content, "what an ordinary client reads");
    }

    /// Makes the export durable.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.call(&request(command::FLUSH, 0, 1, 0, 0))
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_nonblocking(nonblocking),
            Stream::Unix(stream) => stream.set_nonblocking(nonblocking),
        }
    }
}

/// The client's flags: fixed newstyle, no zeroes.
pub fn client_flags() -> [u8; 4] {
    3_u32.to_be_bytes()
}

/// `NBD_OPT_GO` for an export, without information requests.
///
/// # Panics
/// If the name has 4 GiB or more.
pub fn option_go(name: &str) -> Vec<u8> {
    let mut data = counted(name);
    data.extend_from_slice(&[0; 2]);
    option(7, &data)
}

/// An option with its data.
///
/// # Panics
/// If the data has 4 GiB or more.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).expect("a 32-bit length");
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn counted(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).expect("a 32-bit length");
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// The 28 bytes of a request.
pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
