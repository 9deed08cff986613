//! Routing and routed experts. What the traits compute on the host by default is already the
//! reference's; only the sum of the experts' outputs is made in f64 here.

use super::Reference;
use super::backend::store;
use crate::backend::{OutputRows, read_rows};
use crate::{
    Experts, GroupedMatmul, Quantization, Result, Router, Routes, Tensor, TensorMut, check,
};

impl Router for Reference {}

impl GroupedMatmul for Reference {
    fn grouped_matmul_sum(
        &self,
        quant: Option<&Quantization>,
        act: Tensor<'_, Self>,
        experts: &Experts<Self::Weight>,
        routes: &Routes<Self::Buffer>,
        shared: Option<Tensor<'_, Self>>,
        scratch: Self::ViewMut<'_>,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::grouped_sum(
            self,
            quant,
            &act,
            experts,
            routes,
            shared.as_ref(),
            &scratch,
            &y,
        )?;
        let (rows, h) = (y.layout.rows, y.layout.cols);
        let mut sums = vec![0.0_f64; rows * h];
        OutputRows::new(self, &act, experts, routes)?.add_to(&mut sums, h);
        if let Some(shared) = shared {
            let shared = read_rows(self, &shared)?;
            sums.iter_mut()
                .zip(shared)
                .for_each(|(sum, s)| *sum += f64::from(s));
        }
        store("y", y, |t, j| sums[t * h + j])
    }
}
