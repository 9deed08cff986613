use crate::{
    Backend, Error, Float, Gate, HostGate, HostRouter, HostRoutes, Matmul, Request, Result, Routes,
    Shape, Tensor, TensorMut, Token, Tokens, check, sort_by_expert,
};

/// A backend that lets tokens choose their experts. By default logits are a matmul, and the choice
/// is made on the host: the call waits and allocates there.
pub trait Router: Matmul {
    /// Brings a router's tensors to the device. This allocates and may take long.
    ///
    /// # Errors
    /// A format that the backend does not multiply by, or a failure of the device.
    fn load_gate(&self, gate: &HostGate<'_>) -> Result<Gate<Self::Weight, Self::Buffer>> {
        let bring = |bytes: Option<&[u8]>| match bytes {
            None => Ok(None),
            Some(bytes) => {
                let mut buffer = self.alloc(bytes.len())?;
                self.upload(&mut buffer, bytes)?;
                Ok::<_, Error>(Some(buffer))
            }
        };
        Ok(Gate {
            routing: *gate.routing(),
            weight: self.load_weight(&[gate.weight().clone()])?,
            bias: bring(gate.bias().map(bytemuck::cast_slice))?,
            bias_vl: bring(gate.bias_vl().map(bytemuck::cast_slice))?,
            table: bring(gate.table().map(bytemuck::cast_slice))?,
        })
    }

    /// Enqueues the choice of T tokens: x \[T, H\] to `routes`, which have room for T tokens, sorted
    /// by expert. Logits are sums in f32 and never rounded further. `scratch` has the bytes that
    /// [`Backend::scratch`] asks for.
    ///
    /// # Errors
    /// As [`check::route`], [`Error::Unsupported`] where [`Backend::supports`] says no, or a failure
    /// of the device.
    fn route(
        &self,
        gate: &Gate<Self::Weight, Self::Buffer>,
        x: Tensor<'_, Self>,
        tokens: Tokens<'_, Self>,
        scratch: Self::ViewMut<'_>,
        routes: &mut Routes<Self::Buffer>,
    ) -> Result<()> {
        check::route(self, gate, &x, &tokens, &Self::as_view(&scratch), routes)?;
        let count = x.layout.rows;
        let routing = gate.routing;
        let (experts, k) = (routing.experts(), routing.top_k());
        if count == 0 {
            return Ok(());
        }
        let mut logits = TensorMut::contiguous(scratch, Float::F32, count, experts);
        self.matmul(x, &gate.weight, logits.reborrow())?;
        let mut values = vec![0.0_f32; count * experts];
        let view = Self::as_view(&logits.view);
        self.read(view, bytemuck::cast_slice_mut(&mut values))?;

        let words = |view: Option<Self::View<'_>>| {
            let mut words = vec![0_i32; count];
            if let Some(view) = view {
                self.read(view, bytemuck::cast_slice_mut(&mut words))?;
            }
            Ok::<_, Error>(words)
        };
        let [ids, image, padding] = [tokens.ids, tokens.image, tokens.padding].map(words);
        let (ids, image, padding) = (ids?, image?, padding?);
        let floats = |buffer: Option<&Self::Buffer>| from_device::<Self, f32>(self, buffer);
        let (bias, bias_vl) = (floats(gate.bias.as_ref())?, floats(gate.bias_vl.as_ref())?);
        let table = from_device::<Self, i32>(self, gate.table.as_ref())?;
        let router = HostRouter {
            routing,
            bias: bias.as_deref(),
            bias_vl: bias_vl.as_deref(),
            table: table.as_deref(),
        };
        let mut chosen = HostRoutes {
            ids: vec![-1; count * k],
            weights: vec![0.0; count * k],
            offsets: vec![0; experts + 1],
            sorted: vec![0; count * k],
            rows: vec![0; count * k],
        };
        for (t, logits) in values.chunks_exact_mut(experts).enumerate() {
            let token = Token {
                id: ids[t],
                image: image[t] != 0,
                padding: padding[t] != 0,
            };
            let own = t * k..(t + 1) * k;
            let (ids, weights) = (&mut chosen.ids[own.clone()], &mut chosen.weights[own]);
            router.route(logits, token, ids, weights);
        }
        let HostRoutes {
            ids,
            offsets,
            sorted,
            rows,
            ..
        } = &mut chosen;
        sort_by_expert(k, ids, offsets, sorted, rows);
        routes.write(self, &chosen)
    }
}

fn from_device<B: Backend, T: bytemuck::Pod>(
    backend: &B,
    buffer: Option<&B::Buffer>,
) -> Result<Option<Vec<T>>> {
    let Some(buffer) = buffer else {
        return Ok(None);
    };
    let mut values = vec![T::zeroed(); backend.len(buffer) / size_of::<T>()];
    backend.download(buffer, bytemuck::cast_slice_mut(&mut values))?;
    Ok(Some(values))
}

/// The bytes of scratch memory that a router takes from its caller: those of the logits.
pub(super) const fn scratch(request: &Request, shape: &Shape) -> usize {
    match request {
        Request::Route { .. } => shape.rows.saturating_mul(shape.cols).saturating_mul(4),
        _ => 0,
    }
}
