use bytemuck::Pod;

use crate::Result;
use crate::device::{BindingLimits, Device};

/// The workgroups of a dispatch.
pub(crate) type Workgroups = [u32; 3];

/// So many workgroups in two dimensions, so that neither exceeds the device's limit.
pub(crate) fn in_workgroups(limits: &BindingLimits, count: u32) -> [u32; 2] {
    let x = count.clamp(1, limits.workgroups);
    [x, count.div_ceil(x)]
}

/// Buffers as the bindings 0, 1, ….
///
/// # Errors
/// What wgpu finds wrong with them.
pub(crate) fn bind<'a>(
    device: &Device,
    layout: &wgpu::BindGroupLayout,
    bindings: impl IntoIterator<Item = wgpu::BufferBinding<'a>>,
) -> Result<wgpu::BindGroup> {
    let entries: Vec<_> = (0..)
        .zip(bindings)
        .map(|(binding, buffer)| wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(buffer),
        })
        .collect();
    device.scoped("binding buffers", || {
        device.raw().create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        })
    })
}

/// Records one dispatch.
pub(crate) fn dispatch<C: Pod>(
    pass: &mut wgpu::ComputePass<'_>,
    pipeline: &wgpu::ComputePipeline,
    bind_group: &wgpu::BindGroup,
    call: &C,
    [x, y, z]: Workgroups,
) {
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, bind_group, &[]);
    pass.set_immediates(0, bytemuck::bytes_of(call));
    pass.dispatch_workgroups(x, y, z);
}
