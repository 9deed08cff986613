const HUGE_PAGE: usize = 2 << 20;

/// Bytes that begin at a cache line, on huge pages where the system gives them. They are zero until
/// they are written, and a page is only there once it is touched: whoever fills it first brings it,
/// on its own thread.
#[derive(Debug)]
pub(crate) struct PageBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl PageBuffer {
    const LINE: usize = 64;

    pub(crate) fn zeroed(len: usize) -> Self {
        // Less than one huge page cannot have one.
        let align = if len < HUGE_PAGE {
            Self::LINE
        } else {
            HUGE_PAGE
        };
        let bytes = vec![0_u8; len + align - 1];
        let start = bytes.as_ptr().align_offset(align).min(align - 1);
        let mut memory = Self { bytes, start, len };
        ask_for_huge_pages(memory.as_mut_slice());
        memory
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// A walk through a weight crosses a page every microsecond; with pages of 4 KiB that costs a tenth
/// of the bandwidth. Memory that was not touched yet gets the huge pages that lie in it whole.
#[cfg(target_os = "linux")]
pub(crate) fn ask_for_huge_pages<T>(memory: &mut [T]) {
    let bytes: *mut u8 = memory.as_mut_ptr().cast();
    let start = bytes.align_offset(HUGE_PAGE);
    let whole = size_of_val(memory).saturating_sub(start) / HUGE_PAGE * HUGE_PAGE;
    if whole > 0 {
        // SAFETY: the range begins at a page and lies in the slice, of which the advice changes no
        // contents; it may be refused.
        unsafe { libc::madvise(bytes.add(start).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) const fn ask_for_huge_pages<T>(_: &mut [T]) {}
