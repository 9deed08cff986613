//! Which kernels the calls of a request may run: what is built where a backend is opened for some
//! requests only, and what that asks of a device.

use swiglu_core::{Error, Float, GatedActivation, Request, Result, WeightFormat};

use crate::activation::is_native;
use crate::device::{Facts, Needs};
use crate::error::PLATFORM;
use crate::launch::Op;
use crate::pipelines::{
    ActivationKernel, CooperativeFormat, CooperativeKernel, CooperativeTile, DeviceFormat,
    GatedKernel, GemvKind, GemvTokens, GroupedKernel, Half, Kernel, MatmulKernel, MoeKernel,
    QuantizeKernel, TileKind,
};
use crate::weight::WeightForm;

/// The kernels of some requests, each once.
///
/// # Errors
/// A request that no kernel is there for.
pub(crate) fn kernels(requests: &[Request], facts: &Facts) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    for request in requests {
        each_kernel(request, facts, &mut |kernel| {
            if !kernels.contains(&kernel) {
                kernels.push(kernel);
            }
        })?;
    }
    Ok(kernels)
}

/// What kernels ask of a device.
pub(crate) fn needs(kernels: &[Kernel]) -> Needs {
    let needs = kernels.iter().map(|kernel| kernel.needs());
    needs.fold(Needs::default(), Needs::and)
}

/// Tells every kernel that a call of the request may run.
///
/// # Errors
/// A request that no kernel is there for.
pub(crate) fn each_kernel(
    request: &Request,
    facts: &Facts,
    each: &mut dyn FnMut(Kernel),
) -> Result<()> {
    match *request {
        Request::Activation { op, float } => activation(&op, float, facts, each),
        Request::ActivationQuant { op, float, .. } => {
            Op::of(&op, float)?;
            each(Kernel::Quantize(QuantizeKernel::Fused(float)));
            Ok(())
        }
        Request::Quantize { .. } => {
            each(Kernel::Quantize(QuantizeKernel::Matrix));
            each(Kernel::Dequantize);
            Ok(())
        }
        Request::Matmul { x, weight, .. } => {
            for format in device_formats(weight)?.into_iter().flatten() {
                matmul(x, format, facts, each);
            }
            Ok(())
        }
        Request::GatedMatmul { op, x, weight, act } => {
            for format in device_formats(weight)?.into_iter().flatten() {
                matmul(x, format, facts, each);
                gated(&op, [x, act], format, facts, each)?;
            }
            activation(&op, act, facts, each)
        }
        Request::QuantizedMatmul { weight, .. } => {
            each(Kernel::Dequantize);
            for format in device_formats(weight)?.into_iter().flatten() {
                matmul(Float::BF16, format, facts, each);
            }
            Ok(())
        }
        Request::Route { x, weight, .. } => {
            for format in device_formats(weight)?.into_iter().flatten() {
                matmul(x, format, facts, each);
            }
            each(Kernel::Moe(MoeKernel::Choose));
            each(Kernel::Moe(MoeKernel::Sort));
            Ok(())
        }
        Request::GroupedGatedMatmul {
            op, quant, weight, ..
        } => {
            Op::of(&op, Float::BF16)?;
            if quant.is_some() {
                for in_place in [false, true] {
                    each(Kernel::Moe(MoeKernel::Requantize { in_place }));
                }
            }
            grouped(Half::GateUp, weight, facts, each)
        }
        Request::GroupedMatmulSum { weight, .. } => {
            each(Kernel::Moe(MoeKernel::Sum));
            grouped(Half::Down, weight, facts, each)
        }
        _ => Err(Error::unsupported(
            PLATFORM,
            request,
            "this request is not known to this backend",
        )),
    }
}

fn activation(
    op: &GatedActivation,
    float: Float,
    facts: &Facts,
    each: &mut dyn FnMut(Kernel),
) -> Result<()> {
    let call = Op::of(op, float)?;
    let mut each = |kernel| each(Kernel::Activation(kernel));
    each(ActivationKernel::Words(float));
    match is_native(&call, float, op.layout()).filter(|_| facts.native) {
        Some(float) => {
            each(ActivationKernel::NativeSilu(float));
            each(ActivationKernel::NativeRow(float));
        }
        None if call.is_silu() => each(ActivationKernel::SiluVectors(float)),
        None => each(ActivationKernel::Vectors(float)),
    }
    Ok(())
}

/// How weights of a format may be kept, which depends on their width.
fn device_formats(weight: WeightFormat) -> Result<[Option<DeviceFormat>; 2]> {
    let narrow = WeightForm::of(weight, 1)?.format;
    let wide = WeightForm::of(weight, usize::MAX)?.format;
    Ok([Some(narrow), (wide != narrow).then_some(wide)])
}

fn matmul(x: Float, weight: DeviceFormat, facts: &Facts, each: &mut dyn FnMut(Kernel)) {
    let usual = x == weight.usual_x();
    for kind in GemvKind::ALL {
        if usual || matches!(kind, GemvKind::Any { .. }) {
            each(Kernel::Matmul(MatmulKernel::Gemv(weight, kind)));
        }
    }
    for kind in TileKind::ALL {
        if usual || matches!(kind, TileKind::Small { .. }) {
            each(Kernel::Matmul(MatmulKernel::Tiles(weight, kind)));
        }
    }
    let cooperative = CooperativeFormat::of(weight).filter(|_| facts.cooperative && usual);
    if let Some(weight) = cooperative {
        for tile in CooperativeTile::ALL {
            let kernel = CooperativeKernel { weight, tile };
            each(Kernel::Matmul(MatmulKernel::Cooperative {
                kernel,
                dense: false,
            }));
        }
        if weight.is_scaled() {
            each(Kernel::RowsAsF16);
        }
    }
}

/// A half of a layer's experts.
fn grouped(
    half: Half,
    weight: WeightFormat,
    facts: &Facts,
    each: &mut dyn FnMut(Kernel),
) -> Result<()> {
    each(Kernel::Moe(MoeKernel::Schedule));
    for format in device_formats(weight)?.into_iter().flatten() {
        for kernel in GroupedKernel::of(half, format, facts) {
            each(Kernel::Moe(MoeKernel::Grouped(kernel)));
            if kernel.kind.is_cooperative() {
                each(Kernel::RowsAsF16);
            }
        }
    }
    Ok(())
}

fn gated(
    op: &GatedActivation,
    [x, act]: [Float; 2],
    weight: DeviceFormat,
    facts: &Facts,
    each: &mut dyn FnMut(Kernel),
) -> Result<()> {
    let native = facts.native && is_native(&Op::of(op, act)?, act, op.layout()).is_some();
    if facts.gated && native && x == act && x == weight.usual_x() {
        let tokens = GemvTokens::ALL.map(|tokens| tokens.count() as usize);
        let kernels = tokens.map(|tokens| GatedKernel::of(weight, tokens));
        kernels
            .into_iter()
            .flatten()
            .map(Kernel::Gated)
            .for_each(each);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::{Quantization, Rounding, Routing, ScaleFormat, Selection};

    fn of(request: Request) -> Vec<Kernel> {
        kernels(&[request], &Facts::GPU).unwrap()
    }

    #[test]
    fn one_activation_needs_three_kernels_and_three_buffers() {
        let op = GatedActivation::deepseek_v4();
        let bf16 = of(Request::Activation {
            op,
            float: Float::BF16,
        });
        assert_eq!(bf16.len(), 3, "{bf16:?}");
        let Needs {
            storage_buffers,
            workgroup_bytes,
            ..
        } = needs(&bf16);
        assert_eq!((storage_buffers, workgroup_bytes), (3, 0));
    }

    #[test]
    fn quantization_binds_seven_buffers() {
        let (quant, float) = (Quantization::deepseek_v4(), Float::BF16);
        let op = GatedActivation::deepseek_v4();
        for request in [
            Request::Quantize { quant, float },
            Request::ActivationQuant { op, quant, float },
        ] {
            assert_eq!(needs(&of(request)).storage_buffers, 7, "{request}");
        }
    }

    #[test]
    fn blocks_that_may_be_decoded_take_the_kernels_of_f32_too() {
        let weight = |cols| WeightFormat::Fp8 {
            scales: ScaleFormat::F32,
            block: [1, cols],
        };
        let [x, y] = [Float::BF16; 2];
        let count = |cols| {
            let weight = weight(cols);
            of(Request::Matmul { x, weight, y }).len()
        };
        // The latter have blocks that end within a vector.
        assert_eq!((count(128), count(100)), (8 + 5, 8 + 5 + 4));
    }

    /// The requests of a layer of experts with quantized inputs.
    fn of_experts(op: GatedActivation, x: Float, weight: WeightFormat) -> [Request; 3] {
        let routing = Routing::new(256, 6, 1.5, true, Selection::Score).unwrap();
        let quant = Some(Quantization::deepseek_v4());
        [
            Request::Route {
                routing,
                x,
                weight: WeightFormat::Float(Float::BF16),
            },
            Request::GroupedGatedMatmul {
                op,
                quant,
                routing,
                x,
                weight,
            },
            Request::GroupedMatmulSum {
                quant,
                routing,
                weight,
                y: x,
            },
        ]
    }

    #[test]
    fn a_layer_of_experts_in_fp4_binds_eight_buffers_and_takes_kernels_of_fp4_alone() {
        let all = of_experts(
            GatedActivation::deepseek_v4(),
            Float::BF16,
            WeightFormat::Fp4,
        );
        let [route, first, second] = all.map(|request| of(request).len());
        // The gate's matmul and two kernels; the schedule, nine of which four take rows in f16, and two of quantized
        // rows, or the sum.
        assert_eq!((route, first, second), (8 + 5 + 2, 1 + 10 + 2, 1 + 10 + 1));
        let Needs {
            storage_buffers,
            workgroup_bytes,
            ..
        } = needs(&of(all[0]));
        assert_eq!((storage_buffers, workgroup_bytes <= 16 << 10), (8, true));
    }

    #[test]
    fn all_requests_together_take_every_kernel() {
        let mut requests = Vec::new();
        for float in Float::ALL {
            let roundings = [Rounding::Official, Rounding::Eager];
            for op in GatedActivation::ALL
                .into_iter()
                .flat_map(|op| roundings.map(|rounding| op.with_rounding(rounding)))
            {
                let quant = Quantization::deepseek_v4();
                requests.push(Request::Activation { op, float });
                requests.push(Request::ActivationQuant { op, quant, float });
                requests.push(Request::Quantize { quant, float });
                for weight in WeightFormat::SAMPLES {
                    let (x, act) = (float, float);
                    requests.push(Request::Matmul { x, weight, y: act });
                    requests.push(Request::GatedMatmul { op, x, weight, act });
                    requests.extend(of_experts(op, x, weight));
                }
            }
        }
        let mut missing = Kernel::all(&Facts::GPU);
        let found = kernels(&requests, &Facts::GPU).unwrap();
        missing.retain(|kernel| !found.contains(kernel));
        assert_eq!(missing, []);
    }
}
