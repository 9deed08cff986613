use swiglu_core::{
    ActAndMul, Element, Error, Float, GateUp, GatedActivation, RowLayout, Tensor, TensorMut,
};

use super::in_every_type;
use crate::compare::{halves_of_rows, identical, pairs_of_rows};
use crate::harness::poison;
use crate::inputs::Numbers;
use crate::skips::Skips;
use crate::{ActLayouts, Failure, Harness};

/// Elements before a part of host memory, and behind it: any alignment but the element's is lost.
const AROUND: usize = 3;

/// Matrices that are parts of larger host memory, where the device reads and writes that in place
/// ([`swiglu_core::Backend::host_view`]), give bit for bit what matrices in buffers of the
/// backend's own give, and nothing around them is touched. A view that lies between two elements
/// runs as well or is refused by the argument's name.
///
/// # Errors
/// The first difference.
pub fn parts_of_host_memory<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: ActAndMul>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        for op in skips.activations(T::FLOAT) {
            for (rows, d) in [(1, 8), (3, 65)] {
                let merged = Numbers::new(d as u64).values::<T>(rows * 2 * d, 20.0);
                let want = h.act_on_rows(&op, &merged, ActLayouts::contiguous(rows, d))?;
                let pairs = pairs_of_rows(&op, &merged, d);
                let [gates, ups] = halves_of_rows(&op, &merged, d);
                let (merged, gates, ups) = (padded(&merged), padded(&gates), padded(&ups));
                let one = Inputs::Merged(part(&merged));
                let two = Inputs::Split([part(&gates), part(&ups)]);
                for (input, what) in [(one, "one matrix"), (two, "two matrices")] {
                    if let Some(got) = run(h, &op, &input, (rows, d))? {
                        identical(&op, &pairs, &got, &want)
                            .map_err(|f| f.within(format!("{what} in host memory")))?;
                    }
                }
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "parts_of_host_memory");
    if B::host_view(&[]).is_none() || B::host_view_mut(&mut []).is_none() {
        let reason = "its device does not read host memory in place".to_owned();
        skips.leave_out("views of host memory".to_owned(), reason);
        return Ok(());
    }
    in_every_type!(check(h, skips))?;
    if skips.activates(&GatedActivation::deepseek_v4(), Float::F32) {
        between_two_elements(h)?;
    }
    Ok(())
}

/// The bytes of an activation's input.
enum Inputs<'a> {
    Merged(&'a [u8]),
    Split([&'a [u8]; 2]),
}

/// Elements with poison around them.
fn padded<T: Element>(data: &[T]) -> Vec<T> {
    let around = [poison::<T>(); AROUND];
    [around.as_slice(), data, around.as_slice()].concat()
}

/// The bytes of what [`padded`] was given.
fn part<T: Element>(data: &[T]) -> &[u8] {
    bytemuck::cast_slice(&data[AROUND..data.len() - AROUND])
}

/// The results, or nothing where the device does not take this memory.
fn run<T: Element, B: ActAndMul>(
    h: &Harness<B>,
    op: &GatedActivation,
    input: &Inputs<'_>,
    (rows, d): (usize, usize),
) -> Result<Option<Vec<T>>, Failure> {
    let mut output = vec![poison::<T>(); rows * d + 2 * AROUND];
    let matrix = |bytes, cols| {
        B::host_view(bytes).map(|view| Tensor::<B>::contiguous(view, T::FLOAT, rows, cols))
    };
    let input = match input {
        Inputs::Merged(bytes) => matrix(bytes, 2 * d).map(GateUp::Merged),
        Inputs::Split([gates, ups]) => matrix(gates, d)
            .zip(matrix(ups, d))
            .map(|(gate, up)| GateUp::Split { gate, up }),
    };
    let view = B::host_view_mut(bytemuck::cast_slice_mut(
        &mut output[AROUND..AROUND + rows * d],
    ));
    let (Some(input), Some(view)) = (input, view) else {
        return Ok(None);
    };
    let to = TensorMut::contiguous(view, T::FLOAT, rows, d);
    h.backend.act_and_mul(op, input, to)?;
    h.backend.synchronize()?;
    let poison = poison::<T>().to_bits();
    let (got, behind) = output.split_at(AROUND + rows * d);
    let (before, got) = got.split_at(AROUND);
    if before.iter().chain(behind).any(|x| x.to_bits() != poison) {
        return Err(Failure::new(format!(
            "{op}: memory around the output was overwritten"
        )));
    }
    Ok(Some(got.to_vec()))
}

fn between_two_elements<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    let op = GatedActivation::deepseek_v4();
    let x: Vec<f32> = Numbers::new(8).values(17, 20.0);
    // From one byte on: 16 floats that begin within one.
    let bytes = &bytemuck::cast_slice::<f32, u8>(&x)[1..1 + 64];
    let values: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(bytes);
    let want = h.act_on_rows(&op, &values, ActLayouts::contiguous(1, 8))?;
    let mut got = vec![0.0_f32; 8];
    let (Some(from), Some(to)) = (
        B::host_view(bytes),
        B::host_view_mut(bytemuck::cast_slice_mut(&mut got)),
    ) else {
        return Ok(());
    };
    let input = Tensor::contiguous(from, Float::F32, 1, 16).into();
    let output = TensorMut::new(to, Float::F32, RowLayout::contiguous(1, 8));
    match h.backend.act_and_mul(&op, input, output) {
        Ok(()) => {
            h.backend.synchronize()?;
            let pairs = pairs_of_rows(&op, &values, 8);
            identical(&op, &pairs, &got, &want)
        }
        Err(Error::Argument {
            argument: "input", ..
        }) => Ok(()),
        Err(error) => Err(Failure::new(format!(
            "a view between two elements: expected an error that names `input`, got `{error}`"
        ))),
    }
}
