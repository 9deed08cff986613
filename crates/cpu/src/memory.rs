/// Bytes that begin at a cache line, on huge pages where the system gives them. They are zero until
/// they are written, and a page is only there once it is touched: whoever fills it first brings it,
/// on its own thread.
#[derive(Debug)]
pub(crate) struct Memory {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Memory {
    const LINE: usize = 64;
    const HUGE_PAGE: usize = 2 << 20;

    pub(crate) fn zeroed(len: usize) -> Self {
        // Less than one huge page cannot have one.
        let align = if len < Self::HUGE_PAGE {
            Self::LINE
        } else {
            Self::HUGE_PAGE
        };
        let bytes = vec![0_u8; len + align - 1];
        let start = bytes.as_ptr().align_offset(align).min(align - 1);
        let mut memory = Self { bytes, start, len };
        memory.ask_for_huge_pages();
        memory
    }

    /// A walk through a weight crosses a page every microsecond; with pages of 4 KiB that costs a
    /// tenth of the bandwidth.
    #[cfg(target_os = "linux")]
    fn ask_for_huge_pages(&mut self) {
        let whole = self.len - self.len % Self::HUGE_PAGE;
        if whole > 0 {
            let from = self.as_mut_slice().as_mut_ptr();
            // SAFETY: the range is this vector's own and begins at a page. The advice changes no
            // contents, and may be refused.
            unsafe { libc::madvise(from.cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }

    #[cfg(not(target_os = "linux"))]
    const fn ask_for_huge_pages(&mut self) {}

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}
