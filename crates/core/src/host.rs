//! For backends on host memory: views are slices of bytes.

use crate::{Backend, Element, GateUp, GatedActivation, Layout, Order, Result};

/// All that [`Backend`] asks about memory, for a backend whose memory is the host's: buffers are
/// [`crate::HostBuffer`]s, views are slices of bytes, and calls are done when they return.
///
/// ```
/// use swiglu_core::{Backend, Request, Support};
/// struct Mine;
/// impl Backend for Mine {
///     swiglu_core::host_memory!();
///
///     fn platform(&self) -> &'static str {
///         "mine"
///     }
///     fn description(&self) -> String {
///         "a host backend".to_owned()
///     }
/// }
/// assert_eq!(Mine::view_len(&[0_u8; 3].as_slice()), 3);
/// ```
#[macro_export]
macro_rules! host_memory {
    () => {
        type Buffer = $crate::HostBuffer;
        type View<'a> = &'a [u8];
        type ViewMut<'a> = &'a mut [u8];

        fn alloc(&self, bytes: usize) -> $crate::Result<$crate::HostBuffer> {
            $crate::HostBuffer::zeroed(bytes)
        }

        fn len(&self, buffer: &$crate::HostBuffer) -> usize {
            buffer.len()
        }

        fn upload(&self, buffer: &mut $crate::HostBuffer, data: &[u8]) -> $crate::Result<()> {
            buffer.write(data)
        }

        fn download(&self, buffer: &$crate::HostBuffer, data: &mut [u8]) -> $crate::Result<()> {
            buffer.read(data)
        }

        fn read(&self, view: &[u8], data: &mut [u8]) -> $crate::Result<()> {
            let length = data.len();
            data.copy_from_slice($crate::__first_bytes(view, length)?);
            Ok(())
        }

        fn write(&self, view: &mut [u8], data: &[u8]) -> $crate::Result<()> {
            let _ = $crate::__first_bytes(view, data.len())?;
            view[..data.len()].copy_from_slice(data);
            Ok(())
        }

        fn synchronize(&self) -> $crate::Result<()> {
            Ok(())
        }

        fn view(buffer: &$crate::HostBuffer) -> &[u8] {
            buffer.bytes()
        }

        fn view_mut(buffer: &mut $crate::HostBuffer) -> &mut [u8] {
            buffer.bytes_mut()
        }

        fn as_view<'a>(view: &'a &mut [u8]) -> &'a [u8] {
            view
        }

        fn reborrow<'a>(view: &'a mut &mut [u8]) -> &'a mut [u8] {
            view
        }

        fn view_len(view: &&[u8]) -> usize {
            view.len()
        }

        fn host_view(bytes: &[u8]) -> Option<&[u8]> {
            Some(bytes)
        }

        fn host_view_mut(bytes: &mut [u8]) -> Option<&mut [u8]> {
            Some(bytes)
        }
    };
}

/// The first bytes of a view, for [`host_memory!`].
#[doc(hidden)]
pub fn first_bytes(view: &[u8], length: usize) -> Result<&[u8]> {
    view.get(..length).ok_or_else(|| {
        let expected = format!("at most the view's {} bytes", view.len());
        crate::Error::argument("data", expected, length)
    })
}

/// Where the gates and the ups of an activation's input lie in host memory.
#[derive(Clone, Copy, Debug)]
pub struct Halves<'a, T> {
    gate: Half<'a, T>,
    up: Half<'a, T>,
    d: usize,
    step: usize,
}

/// One of the two: row t begins at `start + t · stride`.
#[derive(Clone, Copy, Debug)]
struct Half<'a, T> {
    data: &'a [T],
    start: usize,
    stride: usize,
}

impl<T> Half<'_, T> {
    const fn at(&self, t: usize) -> usize {
        self.start + t * self.stride
    }
}

impl<'a, T: Element> Halves<'a, T> {
    /// Finds them. The input must have passed [`crate::check::act`].
    ///
    /// # Errors
    /// Memory that is not aligned to `T`, or an input of another type.
    pub fn new<B>(op: &GatedActivation, input: &GateUp<'a, B>) -> Result<Self>
    where
        B: Backend<View<'a> = &'a [u8]>,
    {
        match input {
            GateUp::Merged(input) => {
                let data = input.typed("input")?;
                let (stride, d) = (input.layout.stride, input.layout.cols / 2);
                let half = |start: usize| Half {
                    data,
                    start: input.layout.offset + start,
                    stride,
                };
                let (second, step) = match op.layout() {
                    Layout::Concatenated => (d, 1),
                    Layout::Interleaved => (1, 2),
                };
                let (gate, up) = match op.order() {
                    Order::GateFirst => (half(0), half(second)),
                    Order::UpFirst => (half(second), half(0)),
                };
                Ok(Self { gate, up, d, step })
            }
            GateUp::Split { gate, up } => Ok(Self {
                gate: Half {
                    data: gate.typed("gate")?,
                    start: gate.layout.offset,
                    stride: gate.layout.stride,
                },
                up: Half {
                    data: up.typed("up")?,
                    start: up.layout.offset,
                    stride: up.layout.stride,
                },
                d: gate.layout.cols,
                step: 1,
            }),
        }
    }

    /// Elements from one gate of a row to the next: 2 where the halves are interleaved, else 1.
    pub const fn step(&self) -> usize {
        self.step
    }

    /// The gates and the ups of a row, from the first to the last, [`Self::step`] apart.
    pub fn row(&self, t: usize) -> [&'a [T]; 2] {
        let length = (self.d - 1) * self.step + 1;
        [self.gate, self.up].map(|half| &half.data[half.at(t)..][..length])
    }

    /// The pairs of a row.
    pub fn pairs(&self, t: usize) -> impl Iterator<Item = (T, T)> + use<'a, T> {
        let [gates, ups] = self.row(t);
        let (gates, ups) = (
            gates.iter().step_by(self.step),
            ups.iter().step_by(self.step),
        );
        gates.copied().zip(ups.copied())
    }
}
