//! The bind group that a weight was last used with.

use std::sync::Mutex;

use super::window::Window;
use crate::Result;

/// Buffers up to so many bytes may stay because a bind group waits to be used again.
const LARGEST_KEPT: u64 = 1 << 20;

/// The windows of x and y that a weight was last used with, and the bind group for them: where calls
/// alternate between few buffers, as an MLP's do, none is made anew.
#[derive(Debug, Default)]
pub(crate) struct Bound(Mutex<Option<Last>>);

#[derive(Debug)]
struct Last {
    ends: [(wgpu::Buffer, [u64; 2]); 2],
    group: wgpu::BindGroup,
}

impl Bound {
    /// The bind group for these windows: the last one, or what `make` makes.
    pub(crate) fn last_or(
        &self,
        ends: [Window<'_>; 2],
        make: impl FnOnce() -> Result<wgpu::BindGroup>,
    ) -> Result<wgpu::BindGroup> {
        if ends.iter().any(|w| w.buffer().size() > LARGEST_KEPT) {
            return make();
        }
        let mut last = self.0.lock()?;
        if let Some(last) = &*last
            && last
                .ends
                .iter()
                .zip(&ends)
                .all(|((buffer, range), w)| buffer == w.buffer() && *range == w.range())
        {
            return Ok(last.group.clone());
        }
        let group = make()?;
        *last = Some(Last {
            ends: ends.map(|w| (w.buffer().clone(), w.range())),
            group: group.clone(),
        });
        Ok(group)
    }
}
