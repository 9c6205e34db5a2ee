//! Clears what key schedules leave behind: the stack below the caller and the vector registers.
//!
//! Key expansion, MACs and the portable cipher leave key bytes on the stack, and every cipher call leaves them in
//! vector registers; no destructor reaches them. So each of them runs in a frame of its own, behind
//! `#[inline(never)]`, and afterwards that part of the stack and all registers that a callee may
//! use are overwritten:
//!
//! ```text
//!   caller            holds references to slots, never key bytes
//!   ├─ boundary       one frame and everything below it: may hold key bytes
//!   └─ clear_residue  the same place on the stack, overwritten
//! ```
//!
//! What always holds: a closure given to [`with_cleared_residue`] returns nothing secret, and a
//! panic in it clears all the same. Key set-up and MAC calls clear at once. Cipher calls leave the registers
//! to the worker, which calls [`clear_residue`] before it sleeps; on the stack
//! they leave no round key: the next value that is made there and moved to the heap would take it along, in
//! the bytes that it does not use.
//!
//! It never clears what lies above its caller's frame, nor other threads.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// Bytes of stack that are overwritten. Round keys of the deepest user, key expansion of the
/// `aes` crate, were found in less than half of it.
const BURN_BYTES: usize = 16 * 1024;

/// Overwrites 16 KiB of stack below the caller and every register that a callee may change.
///
/// A worker calls it before it sleeps. It costs 100 to 300 ns, as much as the encryption of one to
/// three KiB: too much for each request, little for a sleep.
#[inline(never)]
pub fn clear_residue() {
    burn_stack();
    clear_registers();
}

/// Runs `work` in a frame of its own, then clears that frame, also when `work` panics.
///
/// `R` must not hold key bytes.
pub(crate) fn with_cleared_residue<R>(work: impl FnOnce() -> R) -> R {
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            clear_residue();
        }
    }
    let _clear = Clear;
    boundary(work)
}

/// Runs `work` in a frame of its own, then clears that part of the stack and leaves the registers, which no value is moved with.
///
/// `R` must not hold key bytes.
pub(crate) fn with_cleared_stack<R>(work: impl FnOnce() -> R) -> R {
    let result = boundary(work);
    burn_stack();
    result
}

/// Runs `work` in a frame of its own, so that a later [`clear_residue`] of the caller reaches it.
#[inline(never)]
pub(crate) fn boundary<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[inline(never)]
fn burn_stack() {
    let mut area = MaybeUninit::<[u8; BURN_BYTES]>::uninit();
    // SAFETY: the area is ours and as long as said.
    unsafe { std::ptr::write_bytes(area.as_mut_ptr().cast::<u8>(), 0, BURN_BYTES) };
    // SAFETY: no instruction. To the compiler it may read the area, so that the writes stay.
    unsafe {
        std::arch::asm!("/* {} */", in(reg) area.as_mut_ptr(), options(nostack, preserves_flags));
    }
}

#[cfg(target_arch = "x86_64")]
fn clear_registers() {
    if std::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor and the system have AVX-512F.
        unsafe { clear_avx512() };
    } else if std::is_x86_feature_detected!("avx") {
        // SAFETY: the processor and the system have AVX.
        unsafe { clear_avx() };
    } else {
        clear_sse();
    }
    clear_general();
}

/// The 32 registers of 512 bits and the mask registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn clear_avx512() {
    // SAFETY: writes registers only, all of which the clobber list of the C ABI names (none of
    // them is preserved over calls).
    unsafe {
        std::arch::asm!(
            "vzeroall", // 0 to 15 whole, not only their lower half
            "vpxord zmm16, zmm16, zmm16",
            "vpxord zmm17, zmm17, zmm17",
            "vpxord zmm18, zmm18, zmm18",
            "vpxord zmm19, zmm19, zmm19",
            "vpxord zmm20, zmm20, zmm20",
            "vpxord zmm21, zmm21, zmm21",
            "vpxord zmm22, zmm22, zmm22",
            "vpxord zmm23, zmm23, zmm23",
            "vpxord zmm24, zmm24, zmm24",
            "vpxord zmm25, zmm25, zmm25",
            "vpxord zmm26, zmm26, zmm26",
            "vpxord zmm27, zmm27, zmm27",
            "vpxord zmm28, zmm28, zmm28",
            "vpxord zmm29, zmm29, zmm29",
            "vpxord zmm30, zmm30, zmm30",
            "vpxord zmm31, zmm31, zmm31",
            "kxorw k0, k0, k0",
            "kxorw k1, k1, k1",
            "kxorw k2, k2, k2",
            "kxorw k3, k3, k3",
            "kxorw k4, k4, k4",
            "kxorw k5, k5, k5",
            "kxorw k6, k6, k6",
            "kxorw k7, k7, k7",
            clobber_abi("C"),
            options(nomem, nostack, preserves_flags),
        );
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
fn clear_avx() {
    // SAFETY: writes registers only, all of which the clobber list of the C ABI names.
    unsafe {
        std::arch::asm!(
            "vzeroall",
            clobber_abi("C"),
            options(nomem, nostack, preserves_flags)
        );
    }
}

#[cfg(target_arch = "x86_64")]
fn clear_sse() {
    // SAFETY: writes registers only, all of which the clobber list of the C ABI names.
    unsafe {
        std::arch::asm!(
            "xorps xmm0, xmm0",
            "xorps xmm1, xmm1",
            "xorps xmm2, xmm2",
            "xorps xmm3, xmm3",
            "xorps xmm4, xmm4",
            "xorps xmm5, xmm5",
            "xorps xmm6, xmm6",
            "xorps xmm7, xmm7",
            "xorps xmm8, xmm8",
            "xorps xmm9, xmm9",
            "xorps xmm10, xmm10",
            "xorps xmm11, xmm11",
            "xorps xmm12, xmm12",
            "xorps xmm13, xmm13",
            "xorps xmm14, xmm14",
            "xorps xmm15, xmm15",
            clobber_abi("C"),
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// The general registers that a callee need not preserve: MACs and the portable cipher keep key
/// words in them.
#[cfg(target_arch = "x86_64")]
fn clear_general() {
    // SAFETY: writes registers and flags only; every one is in the clobber list of the C ABI.
    unsafe {
        std::arch::asm!(
            "xor eax, eax",
            "xor ecx, ecx",
            "xor edx, edx",
            "xor esi, esi",
            "xor edi, edi",
            "xor r8d, r8d",
            "xor r9d, r9d",
            "xor r10d, r10d",
            "xor r11d, r11d",
            clobber_abi("C"),
            options(nomem, nostack),
        );
    }
}

#[cfg(target_arch = "aarch64")]
fn clear_registers() {
    // SAFETY: writes registers only. The lower halves of v8 to v15 are preserved over calls: naming
    // the registers as outputs has the compiler save and restore them; the rest is in the clobber
    // list of the C ABI.
    unsafe {
        std::arch::asm!(
            "movi v0.2d, #0", "movi v1.2d, #0", "movi v2.2d, #0", "movi v3.2d, #0",
            "movi v4.2d, #0", "movi v5.2d, #0", "movi v6.2d, #0", "movi v7.2d, #0",
            "movi v8.2d, #0", "movi v9.2d, #0", "movi v10.2d, #0", "movi v11.2d, #0",
            "movi v12.2d, #0", "movi v13.2d, #0", "movi v14.2d, #0", "movi v15.2d, #0",
            "movi v16.2d, #0", "movi v17.2d, #0", "movi v18.2d, #0", "movi v19.2d, #0",
            "movi v20.2d, #0", "movi v21.2d, #0", "movi v22.2d, #0", "movi v23.2d, #0",
            "movi v24.2d, #0", "movi v25.2d, #0", "movi v26.2d, #0", "movi v27.2d, #0",
            "movi v28.2d, #0", "movi v29.2d, #0", "movi v30.2d, #0", "movi v31.2d, #0",
            out("v8") _, out("v9") _, out("v10") _, out("v11") _,
            out("v12") _, out("v13") _, out("v14") _, out("v15") _,
            clobber_abi("C"),
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// Elsewhere only the stack is cleared: there is no list of registers to go by.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn clear_registers() {}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    //! The vector registers, which no search of memory sees; and the stack below a cipher call, before anybody clears it.

    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::xts::XtsKeys;
    use crate::xts::vectors::every_way;

    type Registers = [[u8; 64]; 32];

    /// Fills all 32 registers with ones, calls `between`, and gives what they hold then.
    #[target_feature(enable = "avx512f")]
    fn registers_after(between: extern "C" fn()) -> Registers {
        let mut registers: Registers = [[0; 64]; 32];
        // SAFETY: writes 32 times 64 bytes to an array of that size. The call obeys the C ABI: the
        // stack pointer is aligned and the red zone skipped first, rbx and r12 are preserved by
        // the callee, and all that it may change is in the clobber list.
        unsafe {
            std::arch::asm!(
                "mov r12, rsp",
                "sub rsp, 256",
                "and rsp, -64",
                ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "vpternlogd zmm\\n, zmm\\n, zmm\\n, 255",
                ".endr",
                "call {between}",
                ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "vmovdqu64 [r13 + \\n * 64], zmm\\n",
                ".endr",
                "mov rsp, r12",
                between = in(reg) between,
                in("r13") registers.as_mut_ptr(),
                out("r12") _,
                clobber_abi("C"),
            );
        }
        registers
    }

    extern "C" fn nothing() {}

    /// A worker's batch: data units of both sizes, one and many, in both directions.
    fn batch() {
        let mut data = vec![0; 64 << 10];
        KEYS.with(|keys| {
            for unit in [512, 4096] {
                for len in [unit, data.len()] {
                    keys.encrypt(unit, 3, data[..len].as_mut().into());
                    keys.decrypt(unit, 3, data[..len].as_mut().into());
                }
            }
        });
        std::hint::black_box(&data);
    }

    const KEY: [u8; 64] = [0x3c; 64];

    thread_local! {
        static KEYS: XtsKeys = XtsKeys::new(&KEY);
    }

    extern "C" fn cipher() {
        batch();
    }

    extern "C" fn cipher_and_clear() {
        batch();
        clear_residue();
    }

    extern "C" fn clear() {
        clear_residue();
    }

    #[test]
    fn vector_registers_hold_nothing_once_the_residue_is_cleared() {
        if !std::is_x86_feature_detected!("avx512f") {
            return;
        }
        // SAFETY: the processor and the system have AVX-512F.
        let [before, after] = unsafe { [registers_after(nothing), registers_after(clear)] };
        assert!(
            before.iter().all(|register| *register == [0xff; 64]),
            "the control"
        );
        assert!(after.iter().all(|register| *register == [0; 64]));
    }

    #[test]
    fn round_keys_that_a_batch_leaves_in_registers_are_gone_once_the_residue_is_cleared() {
        if !std::is_x86_feature_detected!("avx512f") {
            return;
        }
        KEYS.with(|_| ()); // expanded before, so that only the batch is seen
        // SAFETY: the processor and the system have AVX-512F.
        let [left, cleared] =
            unsafe { [registers_after(cipher), registers_after(cipher_and_clear)] };
        let mut pieces = left.iter().flat_map(|register| register.chunks(16));
        // The control, where the round keys of the code that ran are known.
        if let Some(keys) = KEYS.with(XtsKeys::round_keys) {
            assert!(pieces.any(|piece| keys.iter().any(|key| key == piece)));
        }
        assert!(cleared.iter().all(|register| *register == [0; 64]));
    }

    /// What `work` leaves on the stack below its caller, read as a debugger reads it: without a frame that lies on it.
    #[inline(never)]
    fn left_on_stack(work: &dyn Fn()) -> Vec<u8> {
        let mut copy = vec![0; BURN_BYTES];
        let memory = std::fs::File::open("/proc/self/mem").expect("the memory of this process");
        let end: u64;
        // SAFETY: reads a register.
        unsafe { std::arch::asm!("mov {}, rsp", out(reg) end, options(nomem, nostack)) };
        burn_stack();
        deeper(work);
        memory
            .read_exact_at(&mut copy, end - BURN_BYTES as u64)
            .expect("the stack of this thread");
        copy
    }

    /// Calls `work` below where a call to the system comes to.
    #[inline(never)]
    fn deeper(work: &dyn Fn()) {
        let room = std::hint::black_box([0_u8; BURN_BYTES / 4]);
        work();
        std::hint::black_box(room);
    }

    /// Which of `keys` stand in `bytes`, whole or by half, and how often.
    fn found(keys: &[[u8; 16]], bytes: &[u8]) -> usize {
        let halves = keys.iter().flat_map(|key| key.chunks(8));
        halves
            .map(|half| bytes.windows(8).filter(|part| *part == half).count())
            .sum()
    }

    #[test]
    fn no_cipher_call_leaves_a_round_key_on_the_stack() {
        let key: [u8; 64] = std::array::from_fn(|at| 0x3b ^ at.to_le_bytes()[0].wrapping_mul(151));
        let all = every_way(&key);
        let known = all.iter().find_map(|(_, keys)| keys.round_keys());
        let Some(known) = known else {
            return; // the portable code's are not known where the processor has no instructions for AES
        };
        let spilled = || {
            let half = u64::from_le_bytes(*known[20].first_chunk().expect("half of a key"));
            // SAFETY: takes from the stack what it has put there.
            unsafe { std::arch::asm!("push {half}", "pop {half}", half = in(reg) half) };
        };
        let control = left_on_stack(&spilled);
        assert_ne!(found(&known, &control), 0, "the control");
        let mut data = vec![0; 64 << 10];
        let data = std::cell::RefCell::new(&mut data[..]);
        for (way, keys) in &all {
            for unit in [512, 4096] {
                for len in [unit, 8 * unit, 64 << 10] {
                    let encrypt = || {
                        keys.encrypt(unit, 3, (&mut data.borrow_mut()[..len]).into());
                    };
                    let decrypt = || {
                        keys.decrypt(unit, 3, (&mut data.borrow_mut()[..len]).into());
                    };
                    let calls: [(&str, &dyn Fn()); 2] =
                        [("encrypt", &encrypt), ("decrypt", &decrypt)];
                    for (name, call) in calls {
                        let left = found(&known, &left_on_stack(call));
                        assert_eq!(left, 0, "{way}: {name}, {len} bytes in units of {unit}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_panic_behind_the_boundary_is_passed_on() {
        let work = || with_cleared_residue(|| -> () { panic!("inside") });
        let panic = std::panic::catch_unwind(work).expect_err("a panic");
        assert_eq!(panic.downcast_ref(), Some(&"inside"));
    }
}
