//! A file that is pages in memory anyway, reached without a system call: copies to and from a mapping of it.
//!
//! Whoever else may write the file can shorten it, and its file system can be full: the kernel then has no page to give, and
//! sends SIGBUS. Here that is an answer and not the end of the process. A copy is one instruction whose address is known; the
//! handler goes on behind it, and what is left is in a register, as it is when the kernel itself copies from or to a process.
//!
//! ```text
//!   copy: rep movsb   ──▶ a page is missing ──▶ SIGBUS ──▶ handler: is it this instruction?
//!         mov rax, rcx ◀──────────────────────────────────────┘ yes     └─▶ no: the handler that was there before
//! ```
//!
//! What always holds: a copy says how many bytes it has made; the rest is for the plain calls of `file/transfer.rs`, which have
//! the error for it. A SIGBUS of any other instruction reaches whoever would have got it without this file.
//! Never: a reference to mapped memory, whose bytes others may change at any time; it is touched by that instruction alone.
//! More address space than [`MAPPED_MAX`], all mappings together: a file beyond it goes without.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};

/// Address space for all mappings together, in bytes: an eighth of what a process has on x86-64, so that the rest of it never
/// runs short.
const MAPPED_MAX: u64 = 16 << 40;

static MAPPED: AtomicU64 = AtomicU64::new(0);

/// A whole file as it was long when it was mapped.
pub(crate) struct Mapping {
    memory: MmapRaw,
    writable: bool,
}

impl Mapping {
    /// Whether there is a copy for this kind of processor.
    pub(crate) const ARE_POSSIBLE: bool = cfg!(target_arch = "x86_64");

    /// Maps the first `len` bytes of a file, for reading, and for writing if `writable`. Nothing if that can't be had: a
    /// processor for which there is no copy here, an empty file, no address space.
    pub(crate) fn of(file: &OwnedFd, len: u64, writable: bool) -> Option<Self> {
        if len == 0 || !copy::handle_missing_pages() {
            return None;
        }
        let taken = MAPPED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |mapped| {
            mapped
                .checked_add(len)
                .filter(|mapped| *mapped <= MAPPED_MAX)
        });
        taken.ok()?;
        let mut options = MmapOptions::new();
        options.len(usize::try_from(len).unwrap_or(usize::MAX));
        let mapped = if writable {
            options.map_raw(file.as_raw_fd())
        } else {
            options.map_raw_read_only(file.as_raw_fd())
        };
        let Ok(memory) = mapped else {
            MAPPED.fetch_sub(len, Ordering::Relaxed);
            return None;
        };
        // A core dump would write the volume out again; and it is only ciphertext, so a refusal does no harm.
        let _ = memory.advise(Advice::DontDump);
        Some(Self { memory, writable })
    }

    /// Copies from `offset` into the front of `buf`; how many bytes.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let Some((at, len)) = self.part(offset, buf.len()) else {
            return 0;
        };
        // SAFETY: `part` has checked that `len` bytes from `at` on lie in the mapping, which lives as long as `self`, and `buf` has
        // as many. They don't overlap: nobody has a reference into the mapping.
        len - unsafe { copy::copy(buf.as_mut_ptr(), at, 0, len) }
    }

    /// Copies the front of `buf` to `offset`; how many bytes: none if it is not mapped for writing.
    pub(crate) fn write(&self, offset: u64, buf: &[u8]) -> usize {
        let Some((at, len)) = self.part(offset, buf.len()).filter(|_| self.writable) else {
            return 0;
        };
        // SAFETY: as in `read`, the other way round, and what is mapped may be written.
        len - unsafe { copy::copy(at, buf.as_ptr(), 0, len) }
    }

    /// The address of `offset`, and how many of `len` bytes from there on are mapped.
    fn part(&self, offset: u64, len: usize) -> Option<(*mut u8, usize)> {
        let offset = usize::try_from(offset).ok()?;
        let len = self.memory.len().checked_sub(offset)?.min(len);
        Some((self.memory.as_mut_ptr().wrapping_add(offset), len))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Counted free a moment before it is: the bound is no exact one.
        MAPPED.fetch_sub(self.memory.len() as u64, Ordering::Relaxed);
    }
}

#[cfg(target_arch = "x86_64")]
mod copy {
    //! The one instruction, and what becomes of a SIGBUS.

    use std::arch::naked_asm;
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::OnceLock;

    use libc::{SA_ONSTACK, SA_SIGINFO, SIGBUS, c_int, c_void, siginfo_t, ucontext_t};

    /// Length of `rep movsb`, in bytes.
    const INSTRUCTION_LEN: i64 = 2;

    /// Copies `len` bytes upwards; how many it has not copied, because a page was missing.
    ///
    /// # Safety
    /// Both ranges are mapped, for reading and for writing, though their pages may be missing; they don't overlap.
    #[unsafe(naked)]
    pub(super) unsafe extern "sysv64" fn copy(
        to: *mut u8,
        from: *const u8,
        _unused: usize,
        len: usize,
    ) -> usize {
        // The instruction comes first, so that its address is the function's: the calling convention has put `to`, `from` and
        // `len` where it looks for them (rdi, rsi, rcx), with the direction flag clear.
        naked_asm!("rep movsb", "mov rax, rcx", "ret")
    }

    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    /// From the first call on a missing page ends a copy early. Whether that could be arranged.
    pub(super) fn handle_missing_pages() -> bool {
        static ARRANGED: OnceLock<bool> = OnceLock::new();
        *ARRANGED.get_or_init(|| {
            let mut before = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: asks for the handler of today and changes nothing; `sigaction` is plain data, for which zeros are a value.
            let before = unsafe {
                if libc::sigaction(SIGBUS, ptr::null(), before.as_mut_ptr()) != 0 {
                    return false;
                }
                before.assume_init()
            };
            // Before our handler is there, which reads it.
            let _ = BEFORE.set(before);
            // SAFETY: `sigaction` is plain data, for which zeros are a value: no signal blocked.
            let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
            ours.sa_sigaction = on_bus_error as *const () as usize;
            // On the stack for signals, which the standard library gives to threads: it has little room itself.
            ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
            // SAFETY: the handler has the type that SA_SIGINFO asks for, and calls only what a signal handler may.
            unsafe { libc::sigaction(SIGBUS, &raw const ours, ptr::null_mut()) == 0 }
        })
    }

    extern "C" fn on_bus_error(_signal: c_int, about: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: the kernel passes a context to a handler with SA_SIGINFO, and nobody else has it meanwhile.
        let context = unsafe { &mut *context.cast::<ucontext_t>() };
        let next = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
        if *next == copy as *const () as i64 {
            *next += INSTRUCTION_LEN;
            return;
        }
        // Not ours: who was here before gets it, the fault by the same instruction, which runs again.
        if let Some(before) = BEFORE.get() {
            // SAFETY: may be called by a signal handler; `before` is what this call once gave.
            unsafe { libc::sigaction(SIGBUS, before, ptr::null_mut()) };
        }
        // SAFETY: the kernel passes it to a handler with SA_SIGINFO.
        if unsafe { (*about).si_code } <= 0 {
            // Sent by a process: it does not come again by itself.
            // SAFETY: may be called by a signal handler.
            unsafe { libc::raise(SIGBUS) };
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod copy {
    //! No copy: nothing is mapped here.

    pub(super) fn handle_missing_pages() -> bool {
        false
    }

    /// Copies nothing.
    ///
    /// # Safety
    /// None is asked for.
    pub(super) unsafe fn copy(_to: *mut u8, _from: *const u8, _unused: usize, len: usize) -> usize {
        len
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    //! A SIGBUS that is none of a copy's business. It ends the process, so each is met in another one: this program, run once more.

    use std::io::Write as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use libc::SIGBUS;

    use super::*;

    /// Says how the other process is to end.
    const ENDING: &str = "SEALVOL_TEST_ENDING";

    /// A file of two pages, mapped, of which the second is gone.
    fn shortened() -> (std::fs::File, Mapping) {
        let mut file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
        file.write_all(&[7; 8192]).expect("two pages");
        let descriptor = OwnedFd::from(file.try_clone().expect("a descriptor"));
        let mapping = Mapping::of(&descriptor, 8192, true).expect("a mapping");
        file.set_len(4096).expect("one page");
        (file, mapping)
    }

    #[test]
    fn a_copy_ends_where_a_page_is_missing() {
        let (_file, mapping) = shortened();
        for start in [0, 1, 100, 4000, 4095] {
            let mut buf = [0; 8192];
            let there = 4096 - start;
            assert_eq!(mapping.read(start as u64, &mut buf), there);
            assert!(buf[..there].iter().all(|&byte| byte == 7));
            assert!(buf[there..].iter().all(|&byte| byte == 0));
            assert_eq!(mapping.write(start as u64, &[7; 8192]), there);
        }
        assert_eq!(mapping.read(4096, &mut [0; 10]), 0);
        assert_eq!(mapping.read(8192, &mut [0; 10]), 0, "past what is mapped");
        assert_eq!(mapping.read(u64::MAX, &mut [0; 10]), 0);
    }

    #[test]
    fn what_is_mapped_for_reading_is_never_written() {
        let mut file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
        file.write_all(&[7; 4096]).expect("a page");
        let mapping = Mapping::of(&OwnedFd::from(file), 4096, false).expect("a mapping");
        assert_eq!(mapping.write(0, &[8; 100]), 0);
        let mut buf = [0; 100];
        assert_eq!(mapping.read(0, &mut buf), 100);
        assert_eq!(buf, [7; 100]);
    }

    #[test]
    fn address_space_is_given_back_and_has_a_bound() {
        let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
        file.set_len(12 << 40).expect("a sparse file");
        let descriptor = OwnedFd::from(file);
        for _ in 0..3 {
            let first = Mapping::of(&descriptor, 12 << 40, true).expect("within the bound");
            assert!(Mapping::of(&descriptor, 12 << 40, true).is_none());
            drop(first);
        }
    }

    /// What the other process does; here it does nothing.
    #[test]
    fn ends_as_it_is_told() {
        let Ok(ending) = std::env::var(ENDING) else {
            return;
        };
        let (_file, mapping) = shortened();
        assert_eq!(mapping.read(4096, &mut [0; 10]), 0, "the handler is there");
        if ending == "sent" {
            // The standard library's handler waits for the fault to come again, so by itself it lets the first one pass.
            let this = std::process::id().to_string();
            for _ in 0..2 {
                let sent = Command::new("kill").args(["-BUS", &this]).status();
                assert!(sent.is_ok_and(|status| status.success()));
            }
        } else {
            // SAFETY: the page is mapped. It is missing, which is what this is about.
            let byte = unsafe { mapping.memory.as_ptr().add(5000).read_volatile() };
            assert_eq!(byte, 0, "unreachable");
        }
        std::process::exit(0);
    }

    #[test]
    fn a_bus_error_that_no_copy_met_ends_the_process_as_ever() {
        for ending in ["sent", "met"] {
            let ended = Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", "mapped::tests::ends_as_it_is_told"])
                .env(ENDING, ending)
                .output()
                .expect("this program runs once more");
            // By the signal; under the address sanitizer by its own handler, which then is the one from before.
            let status = ended.status;
            let as_ever = status.signal() == Some(SIGBUS) || status.code() == Some(1);
            assert!(as_ever, "{ending}: {ended:?}");
        }
    }
}
