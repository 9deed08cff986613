//! Devices of this crate's own: which features they are asked for, and what of them fits the kernels.

use super::handle::Device;
use super::needs::{FEATURES, Needs};
use crate::{Result, WgpuError};

/// What the kernels on cooperative matrices are made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subgroups {
    /// Lanes of every subgroup.
    pub(crate) lanes: u32,
    /// Bytes of memory that a workgroup on cooperative matrices takes.
    pub(crate) storage: u32,
}

impl Subgroups {
    /// Whether the device's subgroups have other lanes: from so many to so many.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) fn others(&self, device: &Device) -> Result<Option<[u32; 2]>, String> {
        if !device.raw().features().contains(wgpu::Features::SUBGROUP) {
            return Err("the device has none".to_owned());
        }
        Ok(self.other_lanes(device.info()))
    }

    /// Whether they multiply matrices of f16 to sums in f32 on a device with these limits.
    fn cooperate(&self, adapter: &wgpu::Adapter, limits: &wgpu::Limits) -> Result<(), String> {
        let fits = |p: &wgpu::CooperativeMatrixProperties| {
            let types = (p.ab_type, p.cr_type);
            (p.m_size, p.n_size, p.k_size) == (16, 16, 16)
                && types
                    == (
                        wgpu::CooperativeScalarType::F16,
                        wgpu::CooperativeScalarType::F32,
                    )
        };
        if !adapter.cooperative_matrix_properties().iter().any(fits) {
            return Err("none of 16 by 16 by 16 from f16 to f32".to_owned());
        }
        if let Some([least, most]) = self.other_lanes(&adapter.get_info()) {
            let lanes = self.lanes;
            return Err(format!(
                "subgroups have {least} to {most} lanes, not {lanes}"
            ));
        }
        let storage = limits.max_compute_workgroup_storage_size;
        if storage < self.storage {
            return Err(format!(
                "workgroups have {storage} bytes, not {}",
                self.storage
            ));
        }
        Ok(())
    }

    /// Whether cooperative matrices can be tried on a device of the caller's.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn cooperate_on(
        &self,
        adapter: &wgpu::Adapter,
        device: &wgpu::Device,
    ) -> Result<(), String> {
        if !device.features().contains(COOPERATIVE_FEATURES) {
            return Err("the device was opened without them".to_owned());
        }
        self.cooperate(adapter, &device.limits())
    }

    fn other_lanes(&self, info: &wgpu::AdapterInfo) -> Option<[u32; 2]> {
        let lanes = [info.subgroup_min_size, info.subgroup_max_size];
        (lanes != [self.lanes; 2]).then_some(lanes)
    }
}

/// What a device is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeviceSettings {
    /// Limits other than the adapter's best.
    pub(crate) limits: Option<wgpu::Limits>,
    /// Features beyond those that kernels use, where the adapter has them.
    pub(crate) features: wgpu::Features,
}

/// Features that kernels use where the device has them.
pub(crate) const OPTIONAL_FEATURES: wgpu::Features =
    wgpu::Features::SUBGROUP.union(wgpu::Features::PIPELINE_CACHE);

const COOPERATIVE_FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

impl DeviceSettings {
    fn limits_on(&self, adapter: &wgpu::Adapter) -> wgpu::Limits {
        self.limits.clone().unwrap_or_else(|| adapter.limits())
    }

    /// Whether cooperative matrices can be tried on a device that will be opened.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn cooperative_matrices_fit(
        &self,
        adapter: &wgpu::Adapter,
        kernels: Subgroups,
    ) -> Result<(), String> {
        if !adapter.features().contains(COOPERATIVE_FEATURES) {
            return Err("the adapter has none".to_owned());
        }
        kernels.cooperate(adapter, &self.limits_on(adapter))
    }

    /// A device of the adapter, with cooperative matrices if they are asked for.
    ///
    /// # Errors
    /// The adapter's refusal.
    pub(crate) fn open(
        &self,
        adapter: &wgpu::Adapter,
        (needs, cooperative): (Needs, bool),
    ) -> Result<Device> {
        let mut wanted = self.features | OPTIONAL_FEATURES;
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        if cooperative {
            wanted |= COOPERATIVE_FEATURES;
            // SAFETY: wgpu asks to be told of bugs in what it calls experimental, and so it will
            // be. One shader uses it, which no caller chooses, and its results are tested.
            experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("swiglu"),
            required_features: FEATURES | (wanted & adapter.features()),
            required_limits: self.limits_on(adapter),
            experimental_features: experimental,
            ..Default::default()
        };
        let requested = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = requested.map_err(|error| WgpuError::NoDevice {
            adapter: adapter.get_info().name,
            reason: error.to_string(),
        })?;
        Device::own(device, queue, (needs, cooperative))
    }
}
