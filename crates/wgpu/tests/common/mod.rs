//! Buffers of the caller's, and what tests put into them.
// Each test file uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::OnceLock;

use swiglu_conformance::inputs::Numbers;
use swiglu_core::{Backend, Element};
use swiglu_wgpu::{Buffer, Builder, View, ViewMut, WgpuBackend, wgpu};

pub const POISON: u8 = 0xa5;

/// One backend for all tests of a kind: to open one is to compile its kernels.
pub fn open(shared: bool) -> Option<&'static WgpuBackend> {
    static BACKENDS: [OnceLock<Option<WgpuBackend>>; 2] = [OnceLock::new(), OnceLock::new()];
    let open = |builder: Builder| match builder.allow_software(true).open() {
        Ok(backend) => Some(backend),
        Err(reason) => {
            swiglu_conformance::may_skip("wgpu", &reason.to_string(), "views");
            None
        }
    };
    let backend = || open(WgpuBackend::builder().shared_buffers(shared));
    BACKENDS[usize::from(shared)].get_or_init(backend).as_ref()
}

pub fn raw(backend: &WgpuBackend, bytes: usize, usage: wgpu::BufferUsages) -> wgpu::Buffer {
    let descriptor = wgpu::BufferDescriptor {
        label: None,
        size: bytes as u64,
        usage,
        mapped_at_creation: false,
    };
    backend.device().raw().create_buffer(&descriptor)
}

/// A page of the caller's: a wgpu buffer that calls see parts of.
pub struct Page {
    pub raw: wgpu::Buffer,
    pub bytes: Vec<u8>,
}

impl Page {
    pub fn new(backend: &WgpuBackend, bytes: usize) -> Self {
        let mut page = Self {
            raw: raw(backend, bytes, Buffer::USAGES),
            bytes: vec![POISON; bytes],
        };
        page.put::<f32>(backend, 0, &[]);
        page
    }

    /// Writes elements from a byte on.
    pub fn put<T: Element>(&mut self, backend: &WgpuBackend, offset: usize, data: &[T]) {
        let data: &[u8] = bytemuck::cast_slice(data);
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        let mut buffer = Buffer::wrap(self.raw.clone()).unwrap();
        backend.upload(&mut buffer, &self.bytes).unwrap();
    }

    /// All bytes, as the device has them.
    pub fn contents(&self, backend: &WgpuBackend) -> Vec<u8> {
        let buffer = Buffer::wrap(self.raw.clone()).unwrap();
        swiglu_conformance::contents(backend, &buffer).unwrap()
    }

    pub fn view(&self, offset: usize, size: usize) -> View<'_> {
        View::new(&self.raw, offset as u64, size as u64).unwrap()
    }

    pub fn view_mut(&self, offset: usize, size: usize) -> ViewMut<'_> {
        ViewMut::new(&self.raw, offset as u64, size as u64).unwrap()
    }
}

pub fn values<T: Element>(count: usize, seed: u64) -> Vec<T> {
    let mut numbers = Numbers::new(seed);
    let mut value = || T::from_f32((numbers.below(4001) as f32 - 2000.0) / 150.0);
    (0..count).map(|_| value()).collect()
}
