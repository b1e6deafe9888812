//! Products of warpgroups: asked for by each of 128 threads, whose sums are NaN from then on, and computed when all of them wait. And what
//! else a warpgroup does as one: it sets its registers.

use std::collections::VecDeque;
use std::ffi::c_char;

use super::clocks::Mark;
use super::{Asynchronous, Dynamic, Other, Site, WARPGROUP};

/// The twin of `emulator::TensorCores`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cores {
    pub bytes: u32,
    pub extra: u32,
}

/// The twin of `emulator::Product`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Product {
    d: *mut f32,
    columns: u32,
    sums: u32,
    a: u64,
    b: u64,
    a_along: u32,
    b_along: u32,
    place: unsafe extern "C" fn(u64, u32, u32, u32) -> u32,
    compute: unsafe extern "C" fn(*const Product, *const u8, *const *mut f32, Cores),
    file: *const c_char,
    line: u32,
    element_bytes: u32,
}

impl Product {
    pub fn site(&self) -> Site {
        Site { file: self.file, line: self.line }
    }

    fn operands(&self) -> (u64, u64, u32, u32, u32) {
        (self.a, self.b, self.a_along, self.b_along, self.columns)
    }

    /// Calls `visit` with the place of each 16 bytes of the operands: bytes of dynamic shared memory.
    fn places(&self, mut visit: impl FnMut(usize) -> Result<(), String>) -> Result<(), String> {
        let pack = 16 / self.element_bytes;
        for (operand, along, rows) in [(self.a, self.a_along, 64), (self.b, self.b_along, self.columns)] {
            let (rows_at_once, summands_at_once) = if along != 0 { (1, pack) } else { (pack, 1) };
            for row in (0..rows).step_by(rows_at_once as usize) {
                for summand in (0..32 / self.element_bytes).step_by(summands_at_once as usize) {
                    // SAFETY: the kernels' own function, which computes with numbers alone.
                    visit(unsafe { (self.place)(operand, along, row, summand) } as usize)?;
                }
            }
        }
        Ok(())
    }
}

/// Sums of a thread that products are added to: NaN meanwhile, so kept here.
pub struct Sums {
    d: *mut f32,
    kept: Vec<f32>,
    products: u32,
}

#[derive(Default)]
pub struct Lane {
    /// Products that it asked for, groups that it ended, registers that it set.
    asked: u32,
    groups: u32,
    pub registers: usize,
    is_fenced: bool,
    sums: Vec<Sums>,
}

/// A product that threads of a warpgroup ask for.
pub struct Asked {
    /// As the first of them asked.
    pub product: Product,
    by: usize,
    /// Up to where each of them has waited.
    known: Vec<u32>,
    group: u32,
    /// The sums of each thread.
    d: Vec<*mut f32>,
}

#[derive(Default)]
pub struct Warpgroup {
    /// Products that were waited for; behind them come these.
    done: u32,
    pub asked: VecDeque<Asked>,
    pub registers: Vec<(u32, bool)>,
}

impl Asynchronous {
    /// A thread asks for a product: the sums become NaN.
    ///
    /// # Safety
    /// The product is a kernel's: its sums lie on the thread's stack.
    pub unsafe fn ask(&mut self, thread: usize, product: &Product, dynamic: Dynamic) -> Result<(), String> {
        let (site, group) = (product.site(), thread / WARPGROUP);
        if group >= self.warpgroups.len() {
            return Err(format!("the product at {site} is asked for by a thread of no whole warpgroup"));
        }
        let lane = &mut self.lanes[thread];
        // SAFETY: as the caller promises.
        let d = unsafe { std::slice::from_raw_parts_mut(product.d, product.sums as usize) };
        match lane.sums.iter_mut().find(|sums| sums.d == product.d) {
            Some(sums) if sums.kept.len() == d.len() && d.iter().all(|sum| sum.to_bits() == u32::MAX) => {
                sums.products += 1;
            }
            Some(_) => {
                return Err(format!(
                    "the sums of the product at {site} were touched before an earlier product was waited for"
                ));
            }
            None if !lane.is_fenced => {
                return Err(format!("multiply_fence is missing between the product at {site} and what made its sums"));
            }
            None => {
                lane.sums.push(Sums { d: product.d, kept: d.to_vec(), products: 1 });
                d.fill(f32::from_bits(u32::MAX));
            }
        }
        let at = &mut self.warpgroups[group];
        let index = (lane.asked - at.done) as usize;
        let groups = lane.groups;
        lane.asked += 1;
        let row = self.clocks.row(thread);
        match at.asked.get_mut(index) {
            None => {
                let (known, d) = (row.to_vec(), vec![product.d]);
                at.asked.push_back(Asked { product: *product, by: thread, known, group: groups, d });
                let number = lane.asked;
                let clocks = &mut self.clocks;
                product.places(|place| match place + 16 <= dynamic.bytes {
                    true => {
                        clocks.reads(group, place, number);
                        Ok(())
                    }
                    false => Err(format!(
                        "out of bounds: the product at {site} reads byte {place} of {} bytes of dynamic shared memory",
                        dynamic.bytes
                    )),
                })?;
            }
            Some(first) => {
                let theirs = &first.product;
                if theirs.site() != site {
                    return Err(format!(
                        "the product at {site} meets that at {} of thread {} of its warpgroup",
                        theirs.site(),
                        first.by
                    ));
                }
                if theirs.operands() != product.operands() {
                    let by = first.by;
                    return Err(format!("the product at {site} has other operands than that of thread {by}"));
                }
                if first.group != groups {
                    return Err(format!("the product at {site} is of another group than that of thread {}", first.by));
                }
                first.known.iter_mut().zip(row).for_each(|(known, own)| *known = (*known).min(*own));
                first.d.push(product.d);
            }
        }
        let asked = &self.warpgroups[group].asked[index];
        if asked.d.len() == WARPGROUP { self.check_operands(asked, dynamic) } else { Ok(()) }
    }

    /// All of the warpgroup have asked: what the product reads, each of them has waited for.
    fn check_operands(&self, asked: &Asked, dynamic: Dynamic) -> Result<(), String> {
        let Asked { product, known, .. } = asked;
        let numbers = 16 / product.element_bytes as usize;
        let mut before = Mark::default();
        product.places(|place| {
            let first = place / product.element_bytes as usize;
            for number in first..first + numbers {
                // SAFETY: the place lies in dynamic shared memory, which has a mark for each number.
                let mark = unsafe { (*dynamic.shadow.add(number)).write };
                if mark == before {
                    continue;
                }
                let (site, name) = (product.site(), dynamic.name());
                if !self.clocks.is_known(known, mark) {
                    let who = self.describe(Other::Mark(mark));
                    return Err(format!("race: read after write of {name}[{number}] by the product at {site}{who}"));
                }
                if !self.clocks.is_fenced(known, mark) {
                    return Err(format!(
                        "the product at {site} does not see {name}[{number}], which {} wrote without fence_async",
                        self.clocks.name_of(mark.column.into())
                    ));
                }
                before = mark;
            }
            Ok(())
        })
    }

    /// Sums may be given to products from here on; or a group of these ends.
    pub fn fence_products(&mut self, thread: usize, commits: bool) {
        let lane = &mut self.lanes[thread];
        if commits {
            lane.groups += 1;
        } else {
            lane.is_fenced = true;
        }
    }

    /// Whether the sums that a thread waits for are all that it gave away.
    pub fn check_sums(&self, thread: usize, sums: *const f32, count: usize, site: Site) -> Result<(), String> {
        if thread / WARPGROUP >= self.warpgroups.len() {
            return Err(format!("products are waited for at {site} by a thread of no whole warpgroup"));
        }
        let range = sums..sums.wrapping_add(count);
        match self.lanes[thread].sums.iter().all(|sums| range.contains(&sums.d.cast_const())) {
            true => Ok(()),
            false => Err(format!("the wait for products at {site} does not name all sums of those under way")),
        }
    }

    /// All threads of a warpgroup wait until at most the last `left` groups are under way. A fault is that of the thread.
    pub fn finish(
        &mut self,
        group: usize,
        left: u32,
        dynamic: Dynamic,
        cores: Cores,
        site: Site,
    ) -> Result<(), (usize, String)> {
        let first = group * WARPGROUP;
        let groups = self.lanes[first].groups;
        let differs = |lane: &Lane| lane.groups != groups;
        if let Some(other) = self.lanes[first..first + WARPGROUP].iter().position(differs) {
            return Err((
                first + other,
                format!("other threads that wait at {site} have ended other groups of products"),
            ));
        }
        let end = groups.saturating_sub(left);
        while let Some(asked) = self.warpgroups[group].asked.front().filter(|asked| asked.group < end) {
            let (product, count) = (asked.product, asked.d.len());
            if count < WARPGROUP {
                let done = self.warpgroups[group].done;
                let lanes = &self.lanes[first..first + WARPGROUP];
                let missing = lanes.iter().position(|lane| lane.asked <= done).unwrap_or(0);
                let what =
                    format!("the product at {} is not asked for by this thread of its warpgroup", product.site());
                return Err((first + missing, what));
            }
            // Each thread's sums, in the order of the threads.
            let mut sums = Vec::with_capacity(WARPGROUP);
            let asked = self.warpgroups[group].asked.pop_front().expect("the first of them");
            for lane in &mut self.lanes[first..first + WARPGROUP] {
                let own = lane.sums.iter_mut().find(|sums| asked.d.contains(&sums.d) && sums.products > 0);
                let own = own.expect("sums that were kept when the product was asked for");
                own.products -= 1;
                sums.push(own.kept.as_mut_ptr());
            }
            // SAFETY: the kernels' own function; operands were checked to lie in dynamic shared memory.
            unsafe { (product.compute)(&product, dynamic.data, sums.as_ptr(), cores) };
            self.warpgroups[group].done += 1;
        }
        let (done, column) = (self.warpgroups[group].done, self.clocks.column_of_group(group));
        for thread in first..first + WARPGROUP {
            self.clocks.row_mut(thread)[column] = done;
            let lane = &mut self.lanes[thread];
            lane.is_fenced = false;
            lane.sums.retain(|sums| {
                if sums.products == 0 {
                    // SAFETY: the thread waits; its sums lie on its stack.
                    unsafe { std::ptr::copy_nonoverlapping(sums.kept.as_ptr(), sums.d, sums.kept.len()) };
                }
                sums.products > 0
            });
        }
        Ok(())
    }

    /// All threads of a warpgroup set their registers alike.
    pub fn set_registers(&mut self, thread: usize, count: u32, up: bool, site: Site) -> Result<(), String> {
        let Some(group) = self.warpgroups.get_mut(thread / WARPGROUP) else {
            return Err(format!("registers are set at {site} by a thread of no whole warpgroup"));
        };
        let lane = &mut self.lanes[thread];
        match group.registers.get(lane.registers) {
            None => group.registers.push((count, up)),
            Some(&set) if set == (count, up) => {}
            Some(&(other, _)) => {
                return Err(format!("{count} registers are set at {site}, and {other} by others of the warpgroup"));
            }
        }
        lane.registers += 1;
        Ok(())
    }
}
