//! Every shader is valid, can be told in the languages of Metal and DirectX, and the calls have the same sizes and offsets in Rust and WGSL.

use std::mem::offset_of;

use naga::back::{hlsl, msl};
use naga::front::wgsl::{Frontend, Options};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

use super::compile::with_writable_inputs;
use super::cooperative::{self, CooperativeKernel};
use super::grouped::{GroupedKernel, MOST_EXPERT_BUFFERS};
use super::kernel::Kernel;
use super::matmul::{LaneSums, Tier};
use super::shader::{OP, Shader};
use super::{activation, grouped_text, matmul_text, moe, quantize};
use crate::device::Facts;
use crate::launch::{
    ActivationCall, ChooseCall, GroupedCall, MatmulCall, Op, Quant, QuantizeCall, RequantizeCall,
    RowsCall, ScheduleCall, SortCall, SumCall,
};

/// Storage buffers of the kernel that binds most: several buffers of experts, and five others.
const MOST_BUFFERS: u32 = 5 + 2 * MOST_EXPERT_BUFFERS;

fn parsed(source: &str, capabilities: Capabilities) -> naga::Module {
    let mut frontend = Frontend::new_with_options(Options {
        parse_doc_comments: false,
        capabilities,
    });
    frontend
        .parse(source)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)))
}

fn all_shaders() -> Vec<Shader> {
    let tier = |(sums, on)| Tier {
        sums,
        e4m3_as_f16: on,
        two_buffers: on,
        expert_buffers: if on { MOST_EXPERT_BUFFERS } else { 1 },
    };
    let tiers = [
        (LaneSums::Workgroup, false),
        (LaneSums::AnySubgroup, true),
        (LaneSums::Subgroup, true),
    ]
    .map(tier);
    let with = |kernel: &Kernel| tiers.map(|tier| kernel.shader(tier));
    let mut all: Vec<_> = Kernel::all(&Facts::GPU).iter().flat_map(with).collect();
    for kernel in GroupedKernel::all(&Facts::GPU) {
        all.extend(kernel.stand_in(tiers[0]));
    }
    for kernel in CooperativeKernel::all() {
        all.push(kernel.shader(Some(7168)));
        all.push(kernel.stand_in(None));
    }
    all
}

fn check(shader: &Shader, source: &str) {
    let mut capabilities =
        Capabilities::IMMEDIATES | Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if source.contains("enable f16;") {
        capabilities |= Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16;
    }
    let module = parsed(source, capabilities);
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all());
    let info = validator
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}: {}", shader.entry, e.emit_to_string(source)));
    let constants = shader
        .constants
        .iter()
        .map(|(name, value)| ((*name).to_owned(), *value))
        .collect();
    let stage = Some((naga::ShaderStage::Compute, shader.entry));
    let stage_of = stage.map(|(stage, entry)| (stage, entry.to_owned()));
    let (module, info) =
        naga::back::pipeline_constants::process_overrides(&module, &info, stage, &constants)
            .unwrap_or_else(|e| panic!("{} {:?}: {e}", shader.entry, shader.constants));
    // Neither has matrices of 16 by 16.
    if !source.contains("enable wgpu_cooperative_matrix") {
        in_metal(shader, (&module, &info), stage_of.clone());
        in_directx(shader, (&module, &info), stage_of);
    }
}

type Stage = Option<(naga::ShaderStage, String)>;

fn in_metal(
    shader: &Shader,
    (module, info): (&naga::Module, &naga::valid::ModuleInfo),
    entry_point: Stage,
) {
    let resources = msl::EntryPointResources {
        resources: bindings()
            .map(|binding| {
                let target = msl::BindTarget {
                    buffer: Some(binding.binding as u8),
                    mutable: true,
                    ..msl::BindTarget::default()
                };
                (binding, target)
            })
            .collect(),
        immediates_buffer: Some(20),
        sizes_buffer: Some(21),
    };
    let options = msl::Options {
        // With subgroups.
        lang_version: (2, 4),
        per_entry_point_map: [(shader.entry.to_owned(), resources)].into(),
        fake_missing_bindings: false,
        ..msl::Options::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point,
        ..msl::PipelineOptions::default()
    };
    let (text, told) = msl::write_string(module, info, &options, &pipeline)
        .unwrap_or_else(|e| panic!("{} {:?}: {e}", shader.entry, shader.constants));
    for name in told.entry_point_names {
        let name = name.unwrap_or_else(|e| panic!("{}: {e}", shader.entry));
        assert!(text.contains(&format!("kernel void {name}")), "{name}");
    }
}

fn in_directx(
    shader: &Shader,
    (module, info): (&naga::Module, &naga::valid::ModuleInfo),
    entry_point: Stage,
) {
    let target = |register| hlsl::BindTarget {
        register,
        ..hlsl::BindTarget::default()
    };
    let options = hlsl::Options {
        // With subgroups and numbers of 16 bits.
        shader_model: hlsl::ShaderModel::V6_2,
        binding_map: bindings().map(|b| (b, target(b.binding))).collect(),
        fake_missing_bindings: false,
        immediates_target: Some(target(10)),
        special_constants_binding: Some(target(11)),
        ..hlsl::Options::default()
    };
    let pipeline = hlsl::PipelineOptions { entry_point };
    let mut text = String::new();
    let told = hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .unwrap_or_else(|e| panic!("{} {:?}: {e}", shader.entry, shader.constants));
    for name in told.entry_point_names {
        let name = name.unwrap_or_else(|e| panic!("{}: {e}", shader.entry));
        assert!(text.contains(&format!("void {name}(")), "{name}");
    }
}

/// Those of the kernel that binds most.
fn bindings() -> impl Iterator<Item = naga::ResourceBinding> {
    (0..MOST_BUFFERS).map(|binding| naga::ResourceBinding { group: 0, binding })
}

#[test]
fn the_shaders_of_limits_are_valid() {
    for (source, entry) in crate::limits::SHADERS {
        let shader = Shader {
            source: source.to_owned(),
            entry,
            constants: Vec::new(),
            checked: true,
        };
        check(&shader, source);
    }
}

#[test]
fn every_shader_is_valid_in_either_form() {
    let all = all_shaders();
    assert_eq!(
        all.len(),
        3 * (13 + 5 + 5 * (5 + 3) + 4 * 3 + 3 * 4 + 1 + 44) + 2 * 3 * 4 + 2 * 4
    );
    for shader in all {
        check(&shader, &shader.source);
        check(&shader, &with_writable_inputs(&shader.source));
    }
}

/// Name and offset of the fields of a struct of WGSL, and its size.
fn in_wgsl(source: &str, name: &str) -> (Vec<(String, usize)>, usize) {
    let module = parsed(source, Capabilities::IMMEDIATES);
    let found = module.types.iter().find_map(|(_, ty)| match &ty.inner {
        naga::TypeInner::Struct { members, span } if ty.name.as_deref() == Some(name) => {
            let field = |m: &naga::StructMember| {
                let name = m.name.clone().unwrap_or_default();
                (name, m.offset as usize)
            };
            Some((members.iter().map(field).collect(), *span as usize))
        }
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no struct {name}"))
}

/// The same of a struct of Rust, whose fields must all be named.
macro_rules! twin {
    ($Struct:ident { $($field:ident),* $(,)? } in $source:expr) => {
        // Does not compile where a field is missing.
        let $Struct { $($field: _),* } = $Struct::default();
        let fields = vec![$((stringify!($field).to_owned(), offset_of!($Struct, $field))),*];
        let (expected, size) = in_wgsl($source, stringify!($Struct));
        assert_eq!(fields, expected, stringify!($Struct));
        assert_eq!(size_of::<$Struct>(), size, stringify!($Struct));
        assert!(size <= crate::device::IMMEDIATE_BYTES as usize);
    };
}

#[test]
fn calls_are_laid_out_alike_on_both_sides() {
    let with_op = |call: &str| [OP, call].concat();
    let activation = with_op(activation::CALL);
    let quantize = with_op(&(quantize::QUANT.to_owned() + quantize::CALL));
    // The other text of a matmul's call stores to y.
    let matmul = with_op(matmul_text::CALL);
    let matmul = &matmul[..matmul.find("var<immediate>").unwrap()];
    let rows = cooperative::rows_as_f16().source;
    twin!(Op {
        function, clamp_place, eager, limit, first, second, up_add, gate_guard,
    } in OP);
    twin!(ActivationCall {
        units, columns_log2, row_units, rows, d, gate_offset, up_offset, gate_stride, up_stride,
        in_step, out_offset, out_stride, op,
    } in &activation);
    twin!(QuantizeCall {
        row_units, rows, d, gate_offset, up_offset, gate_stride, up_stride, in_step, out_offset,
        out_stride, op, quant,
    } in &quantize);
    twin!(Quant {
        group, groups, format, order, scale_offset, scale_stride, floor, rounded_to, first_row,
        batch_rows, counts_offset, route_offset, hits_offset, path,
    } in &quantize);
    twin!(MatmulCall {
        tokens, rows, k, row_vectors, x_float, x_offset, x_stride, y_float, y_offset, y_stride,
        block_rows, block_cols, scale_cols, scale_skip, scale_shift, gate_row, up_row, result_scale,
        factors, exponents, op,
    } in matmul);
    // The other texts go on to kernels.
    let alone = |call: &str| call[..call.find("var<immediate>").unwrap()].to_owned();
    twin!(ChooseCall {
        tokens, experts, top_k, scale, normalize, vocabulary, first_token, logits_offset, ids_offset,
        image_offset, padding_offset, unused, op,
    } in &alone(&with_op(moe::CHOOSE)));
    twin!(SortCall { routes, experts, top_k, unused } in &alone(moe::SORT));
    twin!(ScheduleCall {
        first, experts, few, height, tile, few_items, tile_items, unused,
    } in &alone(moe::SCHEDULE));
    twin!(GroupedCall {
        x_float, x_offset, x_stride, x_first, x_rows, k, row_vectors, block_rows, block_cols, scale_cols,
        scale_shift, result_scale, part_rows, part_scale_rows, first_expert, end_expert, top_k,
        first_row, rows, y_offset, y_stride, first_col, cols, items, op,
    } in &alone(&with_op(grouped_text::GROUPED_CALL)));
    twin!(SumCall {
        tokens, first_token, pairs, cols, top_k, first_expert, end_expert, stride, outputs_offset,
        shared_float, shared_offset, shared_stride, y_float, y_offset, y_stride, unused, op,
    } in &alone(&with_op(moe::SUM)));
    twin!(RequantizeCall {
        row_units, rows, d, from_offset, from_stride, to_offset, to_stride, first_row, first_expert,
        end_expert, op, quant,
    } in &alone(&with_op(&(quantize::QUANT.to_owned() + moe::REQUANTIZE))));
    twin!(RowsCall { rows, k, offset, stride } in &rows);
}
