//! Steps that are captured in parts, between other steps: in every order of the groups, with cuts
//! between groups and in the middle of them, each part finds what the parts before it have copied.

use weighbridge::device::backend::Stream;

use crate::backend::Graph;
use crate::replays::{Bench, ORDERS, order};

/// Enumerated: a name, the number of cases, and the run of one.
pub const ENUMERATED: crate::Enumerated =
    ("pieces: steps in parts between other steps", CASES, parts_between_other_steps);

/// Where a step is cut, by the positions in its order: in the middle of a group, which is held into
/// the next part, and behind a group.
const CUTS: [(u8, u8); 4] = [(0b1111, 0), (0b0001, 0b0100), (0, 0b1111), (0b0110, 0b0001)];
const DEPTHS: [(usize, bool); 3] = [(2, true), (3, true), (1, false)];
const CASES: usize = ORDERS * ORDERS * CUTS.len() * DEPTHS.len();

struct Parts {
    groups: Vec<usize>,
    cuts: (u8, u8),
    graphs: Vec<Graph>,
}

impl Parts {
    fn capture(bench: &Bench, groups: &[usize], cuts: (u8, u8), stream: Stream) -> Self {
        let mut graphs = Vec::new();
        let mut cut = || {
            bench.schedule.join(stream).unwrap();
            graphs.push(bench.account.end_capture(stream));
            bench.account.begin_capture(stream);
        };
        bench.account.begin_capture(stream);
        bench.schedule.begin_step(stream).unwrap();
        for (at, group) in groups.iter().enumerate() {
            bench.schedule.acquire(*group, stream, None).unwrap();
            if cuts.0 >> at & 1 > 0 {
                cut();
            }
            bench.read(*group, stream);
            bench.schedule.release(*group, stream).unwrap();
            if cuts.1 >> at & 1 > 0 {
                cut();
            }
        }
        bench.schedule.join(stream).unwrap();
        graphs.push(bench.account.end_capture(stream));
        Self { groups: groups.to_vec(), cuts, graphs }
    }

    /// Between the parts, the engine itself reads a group that is held.
    fn replay(&self, bench: &Bench, stream: Stream) {
        let mut graphs = self.graphs.iter();
        let mut next = || bench.account.replay(graphs.next().unwrap(), stream).unwrap();
        for (at, group) in self.groups.iter().enumerate() {
            if self.cuts.0 >> at & 1 > 0 {
                next();
                bench.read(*group, stream);
            }
            if self.cuts.1 >> at & 1 > 0 {
                next();
            }
        }
        next();
    }
}

fn parts_between_other_steps(case: usize) {
    let (kind, orders) = (case % (CUTS.len() * DEPTHS.len()), case / (CUTS.len() * DEPTHS.len()));
    let (first, second) = (order(orders % ORDERS), order(orders / ORDERS));
    let (depth, prefetched) = DEPTHS[kind % DEPTHS.len()];
    let bench = Bench::new(depth, prefetched, true);
    let stream = bench.account.new_stream();
    bench.step(&second, stream);
    let copies = || bench.schedule.stats().unwrap().copies;
    let before = copies();
    bench.schedule.expect(Some(first.clone()));
    let parts = Parts::capture(&bench, &first, CUTS[kind / DEPTHS.len()], stream);
    assert_eq!(copies() - before, first.len() as u64, "a group is copied once");
    bench.schedule.expect(None);
    let whole = bench.capture(&second, stream);
    for other in 0..3 {
        parts.replay(&bench, stream);
        match other {
            0 => bench.step(&second, stream),
            1 => bench.account.replay(&whole, stream).unwrap(),
            _ => {}
        }
    }
    parts.replay(&bench, stream);
    bench.step(&first, stream);
}
