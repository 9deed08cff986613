//! What kernels cannot do without, as a device's features and limits.

use super::adapter::feature_names;

/// Bytes of immediate data that the kernels take.
pub(crate) const IMMEDIATE_BYTES: u32 = 128;

/// Bytes of a binding that are asked for: what WebGPU promises of every device. Kernels run with
/// less; what does not fit is cut.
const BINDING_BYTES: u64 = 128 << 20;

/// The features that every kernel needs.
pub(crate) const FEATURES: wgpu::Features = wgpu::Features::IMMEDIATES;

/// The least of a device that some kernels run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) storage_buffers: u32,
    /// Invocations of a workgroup, all along x.
    pub(crate) invocations: u32,
    /// Bytes of a workgroup's memory.
    pub(crate) workgroup_bytes: u32,
}

impl Needs {
    /// What both need.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            storage_buffers: self.storage_buffers.max(other.storage_buffers),
            invocations: self.invocations.max(other.invocations),
            workgroup_bytes: self.workgroup_bytes.max(other.workgroup_bytes),
        }
    }

    /// The limits to ask a device for.
    pub(crate) fn limits(self) -> wgpu::Limits {
        wgpu::Limits {
            max_immediate_size: IMMEDIATE_BYTES,
            max_storage_buffers_per_shader_stage: self.storage_buffers,
            max_storage_buffer_binding_size: BINDING_BYTES,
            max_compute_invocations_per_workgroup: self.invocations,
            max_compute_workgroup_size_x: self.invocations,
            max_compute_workgroup_size_y: 1,
            max_compute_workgroup_size_z: 1,
            max_compute_workgroup_storage_size: self.workgroup_bytes,
            max_compute_workgroups_per_dimension: 65_535,
            ..wgpu::Limits::downlevel_webgl2_defaults()
        }
    }

    /// What features and limits lack, in words.
    pub(crate) fn lacking(self, features: wgpu::Features, limits: &wgpu::Limits) -> Option<String> {
        let missing = FEATURES - features;
        if !missing.is_empty() {
            return Some(format!("the features {}", feature_names(missing)));
        }
        let lacking: Vec<_> = [
            (
                "max_immediate_size",
                limits.max_immediate_size,
                IMMEDIATE_BYTES,
            ),
            (
                "max_storage_buffers_per_shader_stage",
                limits.max_storage_buffers_per_shader_stage,
                self.storage_buffers,
            ),
            (
                "max_compute_invocations_per_workgroup",
                limits.max_compute_invocations_per_workgroup,
                self.invocations,
            ),
            (
                "max_compute_workgroup_size_x",
                limits.max_compute_workgroup_size_x,
                self.invocations,
            ),
            (
                "max_compute_workgroup_storage_size",
                limits.max_compute_workgroup_storage_size,
                self.workgroup_bytes,
            ),
        ]
        .into_iter()
        .filter(|(_, has, needs)| has < needs)
        .map(|(name, has, needs)| format!("a {name} of {needs} (it has {has})"))
        .collect();
        (!lacking.is_empty()).then(|| lacking.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_enough_and_less_is_told() {
        let needs = Needs {
            storage_buffers: 7,
            invocations: 256,
            workgroup_bytes: 512,
        };
        let limits = needs.limits();
        assert_eq!(needs.lacking(FEATURES, &limits), None);
        let none = wgpu::Features::empty();
        let lacking = needs.lacking(none, &limits).unwrap();
        assert_eq!(lacking, "the features IMMEDIATES");
        let few = wgpu::Limits {
            max_storage_buffers_per_shader_stage: 6,
            max_compute_workgroup_storage_size: 0,
            ..limits
        };
        let lacking = needs.lacking(FEATURES, &few).unwrap();
        let expected = "a max_storage_buffers_per_shader_stage of 7 (it has 6), \
                        a max_compute_workgroup_storage_size of 512 (it has 0)";
        assert_eq!(lacking, expected);
    }
}
