//! The values that checks compute on.

use swiglu_core::{
    Element, Error, Float, GatedActivation, Limit, Quantization, ScaleFormat, ScaleOrder,
};

mod weights;

pub(crate) use weights::decoded;
pub use weights::{SampleValues, SampleWeight, encode, weight_formats, whole_columns};

/// The limits at which clamps are checked.
pub const LIMITS: [f32; 8] = [0.333, 0.5, 1.0, 3.0, 7.0, 10.0, 10.03, 15.0];

/// The limit of an activation; 10 where it has none.
pub fn limit_of(op: &GatedActivation) -> f32 {
    op.limit().map_or(10.0, Limit::get)
}

/// The values where an activation with this limit turns, and those that formats treat apart.
pub fn special_values<T: Element>(limit: f32) -> Vec<T> {
    let size = 8 * T::FLOAT.size();
    let sign = 1_u32 << (size - 1);
    let infinity = T::from_f32(f32::INFINITY).to_bits();
    let smallest_normal = match T::FLOAT {
        Float::F16 => 0x0400,
        Float::F32 => 0x0080_0000,
        Float::BF16 => 0x0080,
    };
    let at_limit = T::from_f32(limit).to_bits();
    let magnitudes = [
        0,
        1,
        smallest_normal / 2 + 1,
        smallest_normal - 1,
        smallest_normal,
        at_limit - 1,
        at_limit,
        at_limit + 1,
        T::from_f32(1.278).to_bits(),
        T::from_f32(20.0 * limit).to_bits(),
        // Where exp leaves the normal numbers of f16, and of f32.
        T::from_f32(11.5).to_bits(),
        T::from_f32(87.9).to_bits(),
        T::from_f32(95.0).to_bits(),
        infinity - 1,
        infinity,
        // Canonical and signaling.
        T::from_f32(f32::NAN).to_bits(),
        infinity + 1,
    ];
    let both = magnitudes.into_iter().flat_map(|m| [m, m | sign]);
    both.map(T::from_bits).collect()
}

/// Every pair of two lists.
pub fn pairs<T: Copy>(gates: &[T], ups: &[T]) -> Vec<(T, T)> {
    let with = |&gate: &T| ups.iter().map(move |&up| (gate, up));
    gates.iter().flat_map(with).collect()
}

/// Ups below every model's limit, in the upper half of their binade.
const UPS: [f32; 12] = [
    1.7031, -0.3547, 5.867, -2.917, 0.013_31, 6.89, -0.000_92, 0.709, -3.17, 3.353, -0.1111, 1.517,
];

/// That many ups below every model's limit, of either sign and many sizes. Their last bit is set:
/// ups of few bits, and a limit is one, make products that lie exactly between two values, where
/// the oracle sees more than f32 can.
pub fn spread_of_ups<T: Element>(count: usize) -> Vec<T> {
    let scales = [1.0, -0.125, 0.015_625, -1.0, 0.125, -0.015_625];
    let all = scales.into_iter().flat_map(|s| UPS.map(|up| s * up));
    all.take(count)
        .map(|up| T::from_bits(T::from_f32(up).to_bits() | 1))
        .collect()
}

/// Each of the 65,536 gates of a 16-bit type with one up.
pub fn every_gate<T: Element>(up: T) -> Vec<(T, T)> {
    (0..=0xffff).map(|bits| (T::from_bits(bits), up)).collect()
}

/// Gates of f32: `each` of every sign and exponent with ups between 2^-10 and 2^10, and as many in
/// all within 24.
pub fn every_exponent(each: usize) -> Vec<(f32, f32)> {
    let mut numbers = Numbers::new(0xf32);
    let mut pairs = Vec::with_capacity(1024 * each);
    for top in 0..512_u32 {
        for _ in 0..each {
            let bits = (top << 23) | numbers.below(1 << 23) as u32;
            let exponent = 117 + numbers.below(21) as u32;
            let up = (exponent << 23) | numbers.below(1 << 23) as u32;
            pairs.push((f32::from_bits(bits), f32::from_bits(up)));
        }
    }
    for _ in 0..512 * each {
        pairs.push((numbers.within(24.0), numbers.within(12.0)));
    }
    pairs
}

/// Rows whose stretches of 32 elements are, in turn, of ordinary size, all zeros, with one huge
/// value, with a NaN, with an infinity, all -0, and with a largest value on either side of 448
/// times a power of two.
pub fn telling<T: Element>(rows: usize, d: usize, seed: u64) -> Vec<T> {
    let mut x: Vec<T> = Numbers::new(seed).values(rows * d, 14.0);
    for (g, group) in x.chunks_mut(32).enumerate() {
        let edge = T::from_f32(448.0 * 2f32.powi(g as i32 % 24 - 18));
        match g % 11 {
            1 => group.fill(T::default()),
            2 => group[0] = T::from_f32(3e38),
            3 => group[group.len() / 2] = T::from_f32(-f32::NAN),
            4 => group[0] = T::from_f32(f32::NEG_INFINITY),
            5..=7 => {
                group.fill(T::from_f32(edge.to_f32() / 1024.0));
                let bits = edge.to_bits() + (g as u32 % 11) - 6;
                group[group.len() - 1] = T::from_bits(bits);
            }
            8 => group.fill(T::from_f32(-0.0)),
            _ => {}
        }
    }
    x
}

/// The orders in which scales of this format may lie.
pub fn orders(format: ScaleFormat) -> impl Iterator<Item = ScaleOrder> {
    let packs = format == ScaleFormat::E8M0;
    let all = ScaleOrder::ALL.into_iter();
    all.filter(move |&order| packs || order != ScaleOrder::Packed)
}

/// Every group, format and order of scales.
///
/// # Errors
/// None: core's own groups are ones that it takes.
pub fn quantizations() -> Result<Vec<(Quantization, ScaleOrder)>, Error> {
    let mut all = Vec::new();
    for group in Quantization::GROUPS {
        for format in ScaleFormat::ALL {
            let quant = Quantization::new(group, format)?;
            all.extend(orders(format).map(|order| (quant, order)));
        }
    }
    Ok(all)
}

/// Numbers that follow from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next whole number below `bound`.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// The next number in [-bound, bound).
    pub fn within(&mut self, bound: f32) -> f32 {
        let unit = (self.bits() >> 40) as f32 / (1_u32 << 23) as f32 - 1.0;
        unit * bound
    }

    /// The next number of a distribution that is normal to about 6, of deviation 1: a sum of twelve.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| 0.5 * self.within(1.0)).sum()
    }

    /// That many numbers in [-bound, bound).
    pub fn values<T: Element>(&mut self, count: usize, bound: f32) -> Vec<T> {
        (0..count)
            .map(|_| T::from_f32(self.within(bound)))
            .collect()
    }
}
