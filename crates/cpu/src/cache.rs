use std::sync::OnceLock;

/// Where a machine does not say.
const USUAL: usize = 32 << 20;

/// Bytes of the largest cache that the first caller's core has a share in.
pub(crate) fn last_level() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| described().unwrap_or(USUAL))
}

/// What the processor says of itself: a leaf of sub-leaves, one a cache, until one is of no type.
#[cfg(target_arch = "x86_64")]
fn described() -> Option<usize> {
    use crate::cpuid::{cpuid, is_amd};
    let leaf = if is_amd() { 0x8000_001d } else { 4 };
    if cpuid(leaf & 0x8000_0000, 0).eax < leaf {
        return None;
    }
    (0..8)
        .map(|i| cpuid(leaf, i))
        .take_while(|c| c.eax & 0x1f != 0)
        .map(|c| {
            let field =
                |bits: u32, low: u32, width: u32| ((bits >> low) & ((1 << width) - 1)) as usize + 1;
            let (line, partitions, ways) = (
                field(c.ebx, 0, 12),
                field(c.ebx, 12, 10),
                field(c.ebx, 22, 10),
            );
            line * partitions * ways * (c.ecx as usize + 1)
        })
        .max()
}

#[cfg(not(target_arch = "x86_64"))]
fn described() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_last_level_is_of_a_plausible_size() {
        let bytes = super::last_level();
        assert!((1 << 19..1 << 32).contains(&bytes), "{bytes}");
    }
}
