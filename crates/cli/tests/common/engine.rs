//! Engines that write what they read and made of it to a file, by code of their own in f32.

use safetensors::Dtype;
use serde_json::Value;
use swiglu::{bf16, f16};

use super::{Folder, swiglu, write};

pub const ROWS: usize = 32;
pub const D: usize = 48;

/// What an engine does with a gate and an up half, given the rounding to its storage type.
pub type Formula = fn(gate: f32, up: f32, limit: f32, round: &dyn Fn(f32) -> f32) -> f32;

/// Where an engine finds gate and up j in a row.
pub type Places = fn(usize) -> (usize, usize);

pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// silu with an exponential that is off by 5 units in the last place, as fast ones are.
pub fn fast_silu(x: f32) -> f32 {
    x / (1.0 + f32::from_bits((-x).exp().to_bits() + 5))
}

/// min that keeps NaN.
pub fn at_most(x: f32, limit: f32) -> f32 {
    if x > limit { limit } else { x }
}

/// clamp that keeps NaN.
pub fn both(x: f32, limit: f32) -> f32 {
    x.clamp(-limit, limit)
}

pub fn official(g: f32, u: f32, l: f32, _: &dyn Fn(f32) -> f32) -> f32 {
    silu(at_most(g, l)) * both(u, l)
}

pub fn fast(g: f32, u: f32, l: f32, _: &dyn Fn(f32) -> f32) -> f32 {
    fast_silu(at_most(g, l)) * both(u, l)
}

pub fn eager(g: f32, u: f32, l: f32, round: &dyn Fn(f32) -> f32) -> f32 {
    round(silu(round(at_most(g, l)))) * round(both(u, l))
}

pub fn no_clamp(g: f32, u: f32, _: f32, _: &dyn Fn(f32) -> f32) -> f32 {
    silu(g) * u
}

pub fn clamp_after(g: f32, u: f32, l: f32, _: &dyn Fn(f32) -> f32) -> f32 {
    at_most(silu(g), l) * both(u, l)
}

pub fn halves(j: usize) -> (usize, usize) {
    (j, D + j)
}

pub fn interleaved(j: usize) -> (usize, usize) {
    (2 * j, 2 * j + 1)
}

pub fn swapped(j: usize) -> (usize, usize) {
    (D + j, j)
}

/// How an engine stores f32 as its type.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Cast {
    Nearest,
    CutOff,
    Flush,
}

/// A storage type: its name, reading and writing of little-endian bytes, and its least normal.
pub struct Storage {
    pub dtype: Dtype,
    pub read: fn(&[u8]) -> f32,
    write: fn(f32) -> Vec<u8>,
    least_normal: f32,
}

pub const STORAGES: [Storage; 3] = [
    Storage {
        dtype: Dtype::BF16,
        read: |b| bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        write: |x| bf16::from_f32(x).to_le_bytes().to_vec(),
        least_normal: f32::MIN_POSITIVE,
    },
    Storage {
        dtype: Dtype::F16,
        read: |b| f16::from_le_bytes([b[0], b[1]]).to_f32(),
        write: |x| f16::from_f32(x).to_le_bytes().to_vec(),
        least_normal: 6.103_515_6e-5,
    },
    Storage {
        dtype: Dtype::F32,
        read: |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        write: |x| x.to_le_bytes().to_vec(),
        least_normal: f32::MIN_POSITIVE,
    },
];

pub const BF16: &Storage = &STORAGES[0];
pub const F16: &Storage = &STORAGES[1];
pub const F32: &Storage = &STORAGES[2];

impl Storage {
    pub fn round(&self, x: f32) -> f32 {
        (self.read)(&(self.write)(x))
    }

    fn cast(&self, x: f32, cast: Cast) -> Vec<u8> {
        match cast {
            Cast::Nearest => (self.write)(x),
            Cast::Flush if x.abs() < self.least_normal => (self.write)(0.0),
            Cast::Flush => (self.write)(x),
            Cast::CutOff => {
                let mut bytes = (self.write)(x);
                if (self.read)(&bytes).abs() > x.abs() {
                    let bits = u16::from_le_bytes([bytes[0], bytes[1]]) - 1;
                    bytes = bits.to_le_bytes().to_vec();
                }
                bytes
            }
        }
    }
}

/// An engine: the definition's formula unless it says otherwise.
#[derive(Clone, Copy)]
pub struct Engine {
    pub formula: Formula,
    pub places: Places,
    pub limit: f32,
    pub cast: Cast,
    /// What row t is multiplied by.
    pub route: fn(usize) -> f32,
}

impl Engine {
    pub fn new(formula: Formula, limit: f32) -> Self {
        Self {
            formula,
            places: halves,
            limit,
            cast: Cast::Nearest,
            route: |_| 1.0,
        }
    }

    /// The file that it writes for an input.
    pub fn file(&self, folder: &Folder, s: &Storage, input: &[f32]) -> String {
        let round = |x: f32| s.round(x);
        let stored: Vec<f32> = input.iter().map(|x| round(*x)).collect();
        let mut output = Vec::new();
        for (t, row) in stored.chunks(2 * D).enumerate() {
            for j in 0..D {
                let (g, u) = (self.places)(j);
                let y = (self.formula)(row[g], row[u], self.limit, &round) * (self.route)(t);
                output.extend(s.cast(y, self.cast));
            }
        }
        let rows = stored.len() / (2 * D);
        let path = folder.path("engine.safetensors");
        let bytes: Vec<u8> = input.iter().flat_map(|x| (s.write)(*x)).collect();
        write(
            &path,
            &[
                ("input", s.dtype, &[rows, 1, 2 * D], &bytes),
                ("output", s.dtype, &[rows, 1, D], &output),
            ],
        );
        path.display().to_string()
    }

    /// The verdict on its file, and the exit code.
    pub fn judged(&self, s: &Storage, input: &[f32], flags: &[&str]) -> (i32, Value) {
        let folder = Folder::new();
        judged(&self.file(&folder, s, input), flags)
    }
}

pub fn judged(file: &str, flags: &[&str]) -> (i32, Value) {
    let arguments = ["verify", "--against", file, "--json"];
    let output = swiglu(&[&arguments, flags].concat()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let verdict = serde_json::from_slice(&output.stdout);
    let verdict = verdict.unwrap_or_else(|_| panic!("no JSON: {error}"));
    (output.status.code().unwrap(), verdict)
}

/// Numbers on both sides of ±`spread`, most of them smaller, from a linear congruence.
pub fn input(spread: f32) -> Vec<f32> {
    let mut state = 12_345_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as f32 / (1_u32 << 30) as f32 - 1.0
    };
    (0..ROWS * 2 * D).map(|_| next() * spread).collect()
}

/// The same with some NaN in each half.
pub fn with_nan(mut values: Vec<f32>) -> Vec<f32> {
    for at in (7..values.len()).step_by(61) {
        values[at] = f32::NAN;
    }
    values
}

pub fn explained_by(verdict: &Value) -> Vec<&str> {
    let names = verdict["explained_by"].as_array().unwrap();
    names.iter().map(|n| n.as_str().unwrap()).collect()
}

pub fn not_tried(verdict: &Value) -> Vec<&str> {
    let all = verdict["not_tried"].as_array().unwrap();
    all.iter()
        .map(|u| u["hypothesis"].as_str().unwrap())
        .collect()
}
