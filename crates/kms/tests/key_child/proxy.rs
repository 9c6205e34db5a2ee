//! A network that does not do what it should, between the child and a server.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// What becomes of the server's answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// They pass.
    None,
    /// The connection ends after so many bytes of them.
    CutAfter(usize),
    /// They never come; the connection stays.
    Silence,
    /// The proxy says this in the server's place.
    Says(&'static str),
}

/// Listens for as long as the test runs.
pub(crate) struct Proxy {
    port: u16,
    connections: Arc<AtomicUsize>,
    passed: Arc<AtomicUsize>,
}

impl Proxy {
    /// Before `server`, a port of this machine.
    pub(crate) fn before(server: u16, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its port").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&connections);
        let passed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&passed);
        thread::spawn(move || {
            for stream in listener.incoming() {
                seen.fetch_add(1, Ordering::Relaxed);
                let stream = stream.expect("a connection");
                let count = Arc::clone(&count);
                thread::spawn(move || serve(stream, server, fault, &count));
            }
        });
        Self {
            port,
            connections,
            passed,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many connections came so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many bytes of answers passed so far.
    pub(crate) fn passed(&self) -> usize {
        self.passed.load(Ordering::Relaxed)
    }
}

fn serve(mut client: TcpStream, server: u16, fault: Fault, count: &AtomicUsize) -> io::Result<()> {
    if let Fault::Says(answer) = fault {
        let _ = client.read(&mut [0; 8192])?;
        client.write_all(answer.as_bytes())?;
        return client.shutdown(Shutdown::Both);
    }
    let mut server = TcpStream::connect(("127.0.0.1", server))?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || io::copy(&mut from, &mut to));
    let mut left = match fault {
        Fault::CutAfter(bytes) => bytes,
        Fault::Silence => {
            thread::sleep(Duration::from_secs(600));
            0
        }
        Fault::None | Fault::Says(_) => usize::MAX,
    };
    let mut piece = [0; 4096];
    while left > 0 {
        let room = left.min(piece.len());
        let came = server.read(&mut piece[..room])?;
        if came == 0 {
            break;
        }
        client.write_all(&piece[..came])?;
        count.fetch_add(came, Ordering::Relaxed);
        left -= came;
    }
    client.shutdown(Shutdown::Both)
}
