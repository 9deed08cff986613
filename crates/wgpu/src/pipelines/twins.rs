//! Every shader is valid, and the calls have the same sizes and offsets in Rust and WGSL.

use std::mem::offset_of;

use naga::front::wgsl::{Frontend, Options};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

use super::compile::with_writable_inputs;
use super::kernel::Kernel;
use super::matmul::Tier;
use super::shader::{OP, Shader};
use super::{activation, matmul_text, quantize};
use crate::device::Facts;
use crate::launch::{ActivationCall, MatmulCall, Op, Quant, QuantizeCall};

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
    let tier = |on| Tier {
        subgroups: on,
        e4m3_as_f16: on,
        two_buffers: on,
    };
    let both = [false, true].map(tier);
    let with = |kernel: &Kernel| both.map(|tier| kernel.shader(tier));
    let mut all: Vec<_> = Kernel::all(&Facts::GPU).iter().flat_map(with).collect();
    all.push(matmul_text::cooperative(Some(7168)));
    all
}

fn check(shader: &Shader, source: &str) {
    let mut capabilities =
        Capabilities::IMMEDIATES | Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if shader.entry == "matmul_cooperative" {
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
    naga::back::pipeline_constants::process_overrides(&module, &info, stage, &constants)
        .unwrap_or_else(|e| panic!("{} {:?}: {e}", shader.entry, shader.constants));
}

#[test]
fn every_shader_is_valid_in_either_form() {
    let all = all_shaders();
    assert_eq!(all.len(), 2 * (13 + 5 + 1 + 4 * (5 + 3) + 3 * 3) + 1);
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
    let quantize = with_op(quantize::CALL);
    // The other text of a matmul's call stores to y.
    let matmul = matmul_text::cooperative(None).source;
    let matmul = &matmul[matmul.find("struct Op").unwrap()..matmul.find("var<immediate>").unwrap()];
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
        op,
    } in matmul);
}
