//! AMX through inline assembly, as the intrinsics are not stable.
//!
//! Tiles are state of a thread that the operating system saves with the other registers, also around
//! signals, once it has given the process leave ([`available`]). Outside of a call tiles are released,
//! so that there is nothing to save and the core may sleep deeply.

use std::arch::asm;
use std::arch::x86_64::_xgetbv;
use std::sync::OnceLock;

use super::tiles::{SIDE, TileProduct};
use crate::cpuid::cpuid;

/// arch_prctl's request for leave to use a state component.
const REQUEST_PERMISSION: libc::c_long = 0x1023;
/// The state component of tiles' contents.
const TILE_DATA: libc::c_long = 18;

/// Whether the machine has tiles of bf16 and the operating system lets this process use them. All
/// threads may, once one has asked.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let features = cpuid(7, 0).edx;
        let has = |bit: u32| features >> bit & 1 == 1;
        // AMX-BF16 and AMX-TILE.
        if !(has(22) && has(24)) {
            return false;
        }
        // SAFETY: whoever asks has found AVX-512, which needs the instruction. Components 17 and 18 are
        // tiles' configuration and contents.
        let saved = unsafe { enabled_states() };
        // SAFETY: the call only asks for leave.
        saved >> 17 & 3 == 3
            && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0
    })
}

/// The states that the operating system saves.
///
/// # Safety
/// The processor has XSAVE, and the operating system uses it.
#[target_feature(enable = "xsave")]
unsafe fn enabled_states() -> u64 {
    // SAFETY: the caller vouches for the instruction.
    unsafe { _xgetbv(0) }
}

/// The shapes of the eight tiles.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static WHOLE_TILES: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        row_bytes[tile] = 64;
        rows[tile] = SIDE as u8;
        tile += 1;
    }
    Config {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes,
        rows,
    }
};

/// Gives this thread eight whole tiles.
///
/// # Safety
/// AMX is [`available`].
pub(super) unsafe fn configure() {
    // SAFETY: the caller vouches for the unit; a configuration is 64 bytes.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            config = in(reg) &raw const WHOLE_TILES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// Takes them back.
///
/// # Safety
/// AMX is [`available`].
pub(super) unsafe fn release() {
    // SAFETY: the caller vouches for the unit.
    unsafe {
        asm!(
            "tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags, nomem),
        );
    }
}

/// The lines of a tile that lies so far behind a register's address, into the first-level cache.
macro_rules! prefetch {
    ($register:literal + $tile:literal: $($at:literal)+) => {
        concat!($("prefetcht0 [{", $register, "} + ", $tile, " + ", $at, "]\n"),+)
    };
    ($register:literal + $tile:literal) => {
        prefetch!($register + $tile: 0 64 128 192 256 320 384 448 512 576 640 704 768 832 896 960)
    };
}

/// A function that multiplies so many tiles of rows by so many panels: what clears, loads, adds to and
/// stores the sums (tmm0 and tmm2 of the first panel, tmm1 and tmm3 of the second).
macro_rules! product {
    ($name:ident, clear $clear:literal, load $load:literal, step $($step:expr),+; store $store:literal) => {
        /// # Safety
        /// As [`multiply`], for as many tiles.
        unsafe fn $name(product: &TileProduct) {
            let [w0, w1] = product.w;
            let [later0, later1] = product.later;
            // SAFETY: the caller vouches for the tiles and the sums.
            unsafe {
                asm!(
                    "test {lines_left}, {lines_left}",
                    "jnz 2f",
                    $load,
                    "jmp 3f",
                    "2:",
                    $clear,
                    "3:",
                    "mov {lines_left}, {lines}",
                    "test {lines_left}, {lines_left}",
                    "jz 5f",
                    "4:",
                    "prefetcht1 [{later0}]",
                    "prefetcht1 [{later1}]",
                    "add {later0}, 64",
                    "add {later1}, 64",
                    "dec {lines_left}",
                    "jnz 4b",
                    "5:",
                    $($step,)+
                    "dec {steps}",
                    "jnz 3b",
                    $store,
                    lines_left = inout(reg) usize::from(product.begins) => _,
                    lines = in(reg) product.lines,
                    later0 = inout(reg) later0 => _,
                    later1 = inout(reg) later1 => _,
                    x = inout(reg) product.x => _,
                    w0 = inout(reg) w0 => _,
                    w1 = inout(reg) w1 => _,
                    sums0 = in(reg) product.sums[0],
                    sums1 = in(reg) product.sums[1],
                    steps = inout(reg) product.steps => _,
                    row = in(reg) 64_usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// Two by two tiles, the next step's of w or of x prefetched.
macro_rules! two_by_two {
    ($name:ident, $($ahead:expr),+) => {
        product!(
            $name,
            clear "tilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3",
            load "tileloadd tmm0, [{sums0} + {row}*1]
                  tileloadd tmm1, [{sums1} + {row}*1]
                  tileloadd tmm2, [{sums0} + {row}*1 + 1024]
                  tileloadd tmm3, [{sums1} + {row}*1 + 1024]",
            step $($ahead),+,
                 "tileloadd tmm4, [{x} + {row}*1]
                  tileloadd tmm6, [{w0} + {row}*1]
                  tdpbf16ps tmm0, tmm4, tmm6
                  tileloadd tmm7, [{w1} + {row}*1]
                  tdpbf16ps tmm1, tmm4, tmm7
                  tileloadd tmm5, [{x} + {row}*1 + 1024]
                  tdpbf16ps tmm2, tmm5, tmm6
                  tdpbf16ps tmm3, tmm5, tmm7
                  add {x}, 2048
                  add {w0}, 1024
                  add {w1}, 1024";
            store "tilestored [{sums0} + {row}*1], tmm0
                   tilestored [{sums1} + {row}*1], tmm1
                   tilestored [{sums0} + {row}*1 + 1024], tmm2
                   tilestored [{sums1} + {row}*1 + 1024], tmm3"
        );
    };
}

two_by_two!(two_by_two, prefetch!("w0" + 1024), prefetch!("w1" + 1024));
two_by_two!(
    two_by_two_x_ahead,
    prefetch!("x" + 2048),
    prefetch!("x" + 3072)
);

product!(
    one_by_two,
    clear "tilezero tmm0\ntilezero tmm1",
    load "tileloadd tmm0, [{sums0} + {row}*1]
          tileloadd tmm1, [{sums1} + {row}*1]",
    step prefetch!("w0" + 1024), prefetch!("w1" + 1024),
         "tileloadd tmm4, [{x} + {row}*1]
          tileloadd tmm6, [{w0} + {row}*1]
          tdpbf16ps tmm0, tmm4, tmm6
          tileloadd tmm7, [{w1} + {row}*1]
          tdpbf16ps tmm1, tmm4, tmm7
          add {x}, 1024
          add {w0}, 1024
          add {w1}, 1024";
    store "tilestored [{sums0} + {row}*1], tmm0
           tilestored [{sums1} + {row}*1], tmm1"
);

product!(
    two_by_one,
    clear "tilezero tmm0\ntilezero tmm2",
    load "tileloadd tmm0, [{sums0} + {row}*1]
          tileloadd tmm2, [{sums0} + {row}*1 + 1024]
          /* {sums1} */",
    step prefetch!("w0" + 1024),
         "tileloadd tmm6, [{w0} + {row}*1]
          tileloadd tmm4, [{x} + {row}*1]
          tdpbf16ps tmm0, tmm4, tmm6
          tileloadd tmm5, [{x} + {row}*1 + 1024]
          tdpbf16ps tmm2, tmm5, tmm6
          add {x}, 2048
          add {w0}, 1024
          /* {w1} */";
    store "tilestored [{sums0} + {row}*1], tmm0
           tilestored [{sums0} + {row}*1 + 1024], tmm2"
);

product!(
    one_by_one,
    clear "tilezero tmm0",
    load "tileloadd tmm0, [{sums0} + {row}*1]
          /* {sums1} */",
    step prefetch!("w0" + 1024),
         "tileloadd tmm6, [{w0} + {row}*1]
          tileloadd tmm4, [{x} + {row}*1]
          tdpbf16ps tmm0, tmm4, tmm6
          add {x}, 1024
          add {w0}, 1024
          /* {w1} */";
    store "tilestored [{sums0} + {row}*1], tmm0"
);

/// Adds a product to its sums.
///
/// # Safety
/// As [`super::tiles::Ready::multiply`], and this thread's unit is configured.
pub(super) unsafe fn multiply(product: &TileProduct) {
    assert!(product.steps > 0, "a product has steps");
    // SAFETY: the caller vouches for it.
    unsafe {
        match (product.rows, product.panels) {
            (2, 2) if product.x_ahead => two_by_two_x_ahead(product),
            (2, 2) => two_by_two(product),
            (2, _) => two_by_one(product),
            (_, 2) => one_by_two(product),
            _ => one_by_one(product),
        }
    }
}

/// Products of tiles that [`products`] makes in a round, of which the unit has as many under way as it
/// can: each adds to sums of its own.
const IN_A_ROUND: usize = 6;

/// About so many products of tiles in registers, zeros by zeros: how many there were.
///
/// # Safety
/// This thread's unit is configured.
pub(super) unsafe fn products(count: usize) -> usize {
    let rounds = count.div_ceil(IN_A_ROUND).max(1);
    // SAFETY: the caller vouches for the unit.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm6, tmm7",
            "tdpbf16ps tmm1, tmm6, tmm7",
            "tdpbf16ps tmm2, tmm6, tmm7",
            "tdpbf16ps tmm3, tmm6, tmm7",
            "tdpbf16ps tmm4, tmm6, tmm7",
            "tdpbf16ps tmm5, tmm6, tmm7",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
    rounds * IN_A_ROUND
}
