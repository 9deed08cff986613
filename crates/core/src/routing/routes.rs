//! The routes of some tokens: who goes where, and in which order they are computed.

use super::Routing;
use crate::{Backend, Error, Result};

/// The routes of T tokens in a backend's memory: what a router decides, and the same sorted by
/// expert. All are i32 but the weights, which are f32. Memory grows to the largest T and is reused.
///
/// A *route* is a token and one of its experts; its number is t · k + slot. Routes sorted by expert,
/// and among equals by number, have *rows*: those of expert e are `offsets[e]..offsets[e + 1]`.
/// Routes to no expert (-1) have no row; `offsets[E]` is how many rows there are.
///
/// The buffers are public for backends, which write them in [`crate::Router::route`].
#[derive(Clone, Debug)]
pub struct Routes<Buffer> {
    routing: Routing,
    tokens: usize,
    capacity: usize,
    /// \[T, k\]: the experts in the order of their scores, or of the table; -1 is none.
    pub ids: Buffer,
    /// \[T, k\]: the weights, in f32; 0 where there is no expert.
    pub weights: Buffer,
    /// \[E + 1\]: where each expert's rows begin.
    pub offsets: Buffer,
    /// \[T · k\]: the route of each row; -1 behind the last.
    pub sorted: Buffer,
    /// \[T, k\]: the rows of each token, ascending, which is their experts' order; then -1.
    pub rows: Buffer,
}

/// What [`Routes`] hold, in host memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostRoutes {
    /// \[T, k\].
    pub ids: Vec<i32>,
    /// \[T, k\].
    pub weights: Vec<f32>,
    /// \[E + 1\].
    pub offsets: Vec<i32>,
    /// \[T · k\].
    pub sorted: Vec<i32>,
    /// \[T, k\].
    pub rows: Vec<i32>,
}

impl HostRoutes {
    /// The routes of tokens that chose these experts, sorted.
    ///
    /// # Errors
    /// Ids that are neither -1 nor an expert's number, or that are not k a token; another number of
    /// weights.
    pub fn new(routing: &Routing, ids: &[i32], weights: &[f32]) -> Result<Self> {
        let (experts, k) = (routing.experts(), routing.top_k());
        if !ids.len().is_multiple_of(k) {
            let expected = format!("{k} for each token");
            return Err(Error::argument("ids", expected, ids.len()));
        }
        routing.routes(ids.len() / k)?;
        if weights.len() != ids.len() {
            let expected = format!("{} weights", ids.len());
            return Err(Error::argument("weights", expected, weights.len()));
        }
        let known = |&id: &i32| id == -1 || usize::try_from(id).is_ok_and(|id| id < experts);
        if let Some(wrong) = ids.iter().find(|id| !known(id)) {
            let expected = format!("-1, or an expert from 0 to {}", experts - 1);
            return Err(Error::argument("ids", expected, wrong));
        }
        let mut routes = Self {
            ids: ids.to_vec(),
            weights: weights.to_vec(),
            offsets: vec![0; experts + 1],
            sorted: vec![0; ids.len()],
            rows: vec![0; ids.len()],
        };
        sort_by_expert(
            k,
            ids,
            &mut routes.offsets,
            &mut routes.sorted,
            &mut routes.rows,
        );
        Ok(routes)
    }
}

/// Sorts routes: `ids` \[T, k\] to `offsets` \[E + 1\], `sorted` \[T · k\] and `rows` \[T, k\] as
/// [`Routes`] have them. Ids outside of 0 to E - 1 are none. Nothing is allocated.
pub fn sort_by_expert(
    top_k: usize,
    ids: &[i32],
    offsets: &mut [i32],
    sorted: &mut [i32],
    rows: &mut [i32],
) {
    let experts = offsets.len().saturating_sub(1);
    let expert = |id: i32| usize::try_from(id).ok().filter(|&e| e < experts);
    offsets.fill(0);
    for e in ids.iter().filter_map(|&id| expert(id)) {
        offsets[e + 1] += 1;
    }
    for e in 0..experts {
        offsets[e + 1] += offsets[e];
    }
    sorted.fill(-1);
    for (route, &id) in ids.iter().enumerate() {
        if let Some(e) = expert(id) {
            sorted[offsets[e] as usize] = route as i32;
            offsets[e] += 1;
        }
    }
    // Each has come to where the next began.
    offsets.copy_within(0..experts, 1);
    if let Some(first) = offsets.first_mut() {
        *first = 0;
    }
    rows.fill(-1);
    for (row, &route) in sorted.iter().enumerate() {
        let Ok(route) = usize::try_from(route) else {
            break;
        };
        let token = route / top_k * top_k;
        let own = &mut rows[token..token + top_k];
        if let Some(free) = own.iter_mut().find(|r| **r < 0) {
            *free = row as i32;
        }
    }
}

impl<Buffer> Routes<Buffer> {
    /// Room for the routes of so many tokens. What they are is unspecified until a router, or
    /// [`Self::upload`], has written them.
    ///
    /// # Errors
    /// More routes than an `i32` counts, or a failure of the device.
    pub fn new<B>(backend: &B, routing: &Routing, tokens: usize) -> Result<Self>
    where
        B: Backend<Buffer = Buffer>,
    {
        let words = routing.routes(tokens)?;
        let alloc = |words: usize| backend.alloc(words.saturating_mul(4));
        Ok(Self {
            routing: *routing,
            tokens,
            capacity: tokens,
            ids: alloc(words)?,
            weights: alloc(words)?,
            offsets: alloc(routing.experts() + 1)?,
            sorted: alloc(words)?,
            rows: alloc(words)?,
        })
    }

    /// The same for another number of tokens: memory is allocated only where there was never as
    /// much.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn resize<B>(&mut self, backend: &B, tokens: usize) -> Result<()>
    where
        B: Backend<Buffer = Buffer>,
    {
        self.routing.routes(tokens)?;
        if tokens > self.capacity {
            *self = Self::new(backend, &self.routing, tokens)?;
        }
        self.tokens = tokens;
        Ok(())
    }

    /// How the tokens chose.
    pub const fn routing(&self) -> &Routing {
        &self.routing
    }

    /// Tokens (T).
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Routes, T · k: as many rows as there can be.
    pub const fn count(&self) -> usize {
        self.tokens * self.routing.top_k()
    }

    /// Brings an engine's own choice to the device, \[T, k\] each: as many tokens as
    /// [`Self::resize`] was given. It is sorted here.
    ///
    /// # Errors
    /// As [`HostRoutes::new`], another number of tokens, or a failure of the device.
    pub fn upload<B>(&mut self, backend: &B, ids: &[i32], weights: &[f32]) -> Result<()>
    where
        B: Backend<Buffer = Buffer>,
    {
        let routes = HostRoutes::new(&self.routing, ids, weights)?;
        self.write(backend, &routes)
    }

    /// As [`Self::upload`], with routes that are sorted.
    pub(crate) fn write<B>(&mut self, backend: &B, routes: &HostRoutes) -> Result<()>
    where
        B: Backend<Buffer = Buffer>,
    {
        if routes.ids.len() != self.count() {
            let expected = format!("{} ids", self.count());
            return Err(Error::argument("ids", expected, routes.ids.len()));
        }
        backend.upload(&mut self.ids, bytemuck::cast_slice(&routes.ids))?;
        backend.upload(&mut self.weights, bytemuck::cast_slice(&routes.weights))?;
        backend.upload(&mut self.offsets, bytemuck::cast_slice(&routes.offsets))?;
        backend.upload(&mut self.sorted, bytemuck::cast_slice(&routes.sorted))?;
        backend.upload(&mut self.rows, bytemuck::cast_slice(&routes.rows))
    }

    /// Waits for what was enqueued and brings the routes to the host.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn download<B>(&self, backend: &B) -> Result<HostRoutes>
    where
        B: Backend<Buffer = Buffer>,
    {
        let read = |buffer: &Buffer, words: usize| {
            let mut data = vec![0_i32; words];
            backend.download(buffer, bytemuck::cast_slice_mut(&mut data))?;
            Ok::<_, Error>(data)
        };
        let count = self.count();
        let mut weights = vec![0.0_f32; count];
        backend.download(&self.weights, bytemuck::cast_slice_mut(&mut weights))?;
        Ok(HostRoutes {
            ids: read(&self.ids, count)?,
            weights,
            offsets: read(&self.offsets, self.routing.experts() + 1)?,
            sorted: read(&self.sorted, count)?,
            rows: read(&self.rows, count)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Selection;
    use crate::reference::Reference;

    #[test]
    fn rows_are_sorted_by_expert_and_each_token_knows_its_own() {
        let routing = Routing::new(5, 3, 1.0, true, Selection::Score).unwrap();
        let ids = [4, 0, 2, -1, -1, -1, 2, 2, 4];
        let routes = HostRoutes::new(&routing, &ids, &[0.5; 9]).unwrap();
        assert_eq!(routes.offsets, [0, 1, 1, 4, 4, 6]);
        assert_eq!(routes.sorted, [1, 2, 6, 7, 0, 8, -1, -1, -1]);
        assert_eq!(routes.rows, [0, 1, 4, -1, -1, -1, 2, 3, 5]);
        let none = HostRoutes::new(&routing, &[], &[]).unwrap();
        assert_eq!(none.offsets, [0; 6]);
    }

    #[test]
    fn choices_that_are_none_are_refused() {
        let routing = Routing::new(5, 3, 1.0, true, Selection::Score).unwrap();
        let new = |ids: &[i32], n| HostRoutes::new(&routing, ids, &vec![0.0; n]).unwrap_err();
        assert!(
            new(&[0, 1, 5], 3)
                .to_string()
                .starts_with("ids: expected -1, or")
        );
        assert!(new(&[0, 1, -2], 3).to_string().starts_with("ids: "));
        assert!(
            new(&[0, 1], 2)
                .to_string()
                .starts_with("ids: expected 3 for each")
        );
        assert!(
            new(&[0, 1, 2], 2)
                .to_string()
                .starts_with("weights: expected 3")
        );
    }

    #[test]
    fn memory_is_kept_for_fewer_tokens() {
        let routing = Routing::new(5, 2, 1.0, true, Selection::Score).unwrap();
        let mut routes = Routes::new(&Reference, &routing, 3).unwrap();
        let place = routes.ids.bytes().as_ptr();
        routes.resize(&Reference, 1).unwrap();
        assert_eq!((routes.tokens(), routes.count()), (1, 2));
        routes.upload(&Reference, &[4, 1], &[0.5, 1.5]).unwrap();
        let back = routes.download(&Reference).unwrap();
        assert_eq!(
            back,
            HostRoutes::new(&routing, &[4, 1], &[0.5, 1.5]).unwrap()
        );
        routes.resize(&Reference, 3).unwrap();
        assert_eq!(routes.ids.bytes().as_ptr(), place);
        assert!(routes.upload(&Reference, &[4, 1], &[0.5, 1.5]).is_err());
    }
}
