//! The reference's matmul and what it says of itself.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use swiglu_core::reference::Reference;
use swiglu_core::{Backend, Float, HostWeight, Matmul, RowLayout, Tensor, TensorMut, WeightFormat};

#[test]
fn the_reference_says_what_it_is() {
    assert_eq!(Reference.platform(), "reference");
    assert!(Reference.description().contains("f64"));
}

#[test]
fn a_matmul_is_the_sum_of_products_of_whole_and_partial_vectors() {
    let (rows, n, k) = (2, 3, 7);
    let w: Vec<f32> = (0..n * k).map(|i| i as f32 - 9.0).collect();
    let x: Vec<f32> = (0..rows * k).map(|i| (i * i) as f32).collect();
    let format = WeightFormat::Float(Float::F32);
    let part = HostWeight::new([n, k], format, bytemuck::cast_slice(&w), &[]).unwrap();
    let weight = Reference.load_weight(&[part]).unwrap();
    assert_eq!(Reference.weight_bytes(&weight), 4 * n * k);
    let matmul = |x_cols: usize, y_cols: usize, y: &mut [f32]| {
        let x = Tensor::from_slice(&x, RowLayout::contiguous(rows, x_cols));
        let y = TensorMut::from_slice(y, RowLayout::contiguous(rows, y_cols));
        Reference.matmul(x, &weight, y)
    };
    let mut y = vec![0.0_f32; rows * n];
    matmul(k, n, &mut y).unwrap();
    for t in 0..rows {
        for j in 0..n {
            let products = (0..k).map(|i| x[t * k + i] * w[j * k + i]);
            assert_eq!(y[t * n + j], products.sum::<f32>());
        }
    }
    let error = matmul(6, n, &mut y).unwrap_err().to_string();
    assert_eq!(error, "x: expected shape [2, 7], got [2, 6]");
    let error = matmul(k, 2, &mut y).unwrap_err().to_string();
    assert_eq!(error, "y: expected shape [2, 3], got [2, 2]");
}
