//! How codes of FP4 lie in the words that shaders read.
//!
//! ## Method
//! A word has eight codes, in four pairs: the i-th and the one four further, in either half. Of an f16 the sign is bit
//! 15, and what a code has beside its sign fits bits 9 to 11. The first pair lies there, the second three bits
//! lower; magnitudes of the others are below, and their signs in what is left.

/// Bits of the signs of the four codes in half a word, and where their magnitudes begin.
const SIGNS: [u32; 4] = [15, 12, 14, 13];
const MAGNITUDES: [u32; 4] = [9, 6, 3, 0];

/// Brings codes that lie one after another into the order of shaders, in place. There are whole words.
pub(super) fn arrange(bytes: &mut [u8]) {
    for word in bytes.chunks_exact_mut(4) {
        let mut codes = [0; 4];
        codes.copy_from_slice(word);
        word.copy_from_slice(&arranged(u32::from_le_bytes(codes)).to_le_bytes());
    }
}

fn arranged(codes: u32) -> u32 {
    let place = |i: u32| {
        let code = codes >> (4 * i) & 0xf;
        let pair = (i % 4) as usize;
        let half = (code >> 3) << SIGNS[pair] | (code & 7) << MAGNITUDES[pair];
        half << (i / 4 * 16)
    };
    (0..8).map(place).fold(0, |word, code| word | code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What widen_e2m1 does with a word, as bits of f16s, low halves first.
    fn taken(word: u32) -> [u16; 8] {
        let shifted_twice = |pair: u32, by: u32| (word & pair).wrapping_mul(by) & 0x8e00_8e00;
        let pairs = [
            word & 0x8e00_8e00,
            word << 3 & 0x8e00_8e00,
            shifted_twice(0x4038_4038, 66),
            shifted_twice(0x2007_2007, 516),
        ];
        let halves = |shift: u32| pairs.map(|pair| (pair >> shift) as u16);
        let [low, high] = [halves(0), halves(16)];
        std::array::from_fn(|i| if i < 4 { low[i] } else { high[i - 4] })
    }

    #[test]
    fn a_code_comes_out_at_its_place_whatever_its_neighbours_are() {
        for i in 0..8 {
            for code in 0..16_u32 {
                for others in [0, u32::MAX, 0x5a5a_5a5a] {
                    let word = others & !(0xf << (4 * i)) | code << (4 * i);
                    let expected = (code >> 3) << 15 | (code & 7) << 9;
                    assert_eq!(u32::from(taken(arranged(word))[i]), expected, "{i} {code}");
                }
            }
        }
    }
}
