//! Turns a fault of a kernel (a segmentation fault at a guard page, a division by zero) into the end of its coroutine.
//!
//! The signal handler leaves every fault alone that does not come from a kernel's coroutine on this thread.

use std::cell::Cell;
use std::sync::OnceLock;

use corosensei::trap::CoroutineTrapHandler;

/// The fault that ended a coroutine.
#[derive(Clone, Copy)]
pub enum Fault {
    Address(u64),
    /// An address that the processor refuses without saying which: beyond all memory, or misaligned for a vector.
    Wild,
    Arithmetic,
}

thread_local! {
    /// The coroutine that runs on this thread.
    static RUNNING: Cell<Option<CoroutineTrapHandler<()>>> = const { Cell::new(None) };
    static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Runs `resume`, during which the coroutine of `handler` runs; says what fault ended it, if one did.
pub fn watched(handler: CoroutineTrapHandler<()>, resume: impl FnOnce()) -> Option<Fault> {
    RUNNING.set(Some(handler));
    resume();
    RUNNING.set(None);
    FAULT.take()
}

static BEFORE: [OnceLock<libc::sigaction>; 3] = [const { OnceLock::new() }; 3];
const SIGNALS: [libc::c_int; 3] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE];

/// The code that the operating system gives where the processor gave no address.
const SI_KERNEL: libc::c_int = 0x80;

/// Once per process.
pub fn install() {
    for (signal, before) in SIGNALS.into_iter().zip(&BEFORE) {
        before.get_or_init(|| {
            // SAFETY: `on_fault` touches nothing but thread-local cells and the context it is given. It runs on the
            // alternate stack that Rust's runtime gives every thread, for the coroutine's may be full.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_fault as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                let mut old: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &action, &mut old);
                old
            }
        });
    }
}

unsafe extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel of the operating system hands both over for the time of the call.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
    if let Some(handler) = RUNNING.get().filter(|handler| handler.stack_ptr_in_bounds(stack_pointer(context))) {
        FAULT.set(Some(match signal {
            libc::SIGFPE => Fault::Arithmetic,
            _ if info.si_code == SI_KERNEL => Fault::Wild,
            // SAFETY: these signals carry an address.
            _ => Fault::Address(unsafe { info.si_addr() } as u64),
        }));
        // SAFETY: the fault happened on this coroutine's stack, which holds nothing that must be dropped; its registers
        // are set as asked for.
        unsafe { leave(context, &handler) };
        return;
    }
    // Not ours: whoever was here before decides. The instruction faults again under their handler.
    let index = SIGNALS.iter().position(|&known| known == signal).expect("installed for these alone");
    if let Some(before) = BEFORE[index].get() {
        // SAFETY: puts back what was there.
        unsafe { libc::sigaction(signal, before, std::ptr::null_mut()) };
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn stack_pointer(context: &libc::ucontext_t) -> usize {
    context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
unsafe fn leave(context: &mut libc::ucontext_t, handler: &CoroutineTrapHandler<()>) {
    // SAFETY: as the caller promises.
    let to = unsafe { handler.setup_trap_handler(|| ()) };
    let registers = &mut context.uc_mcontext.gregs;
    for (register, value) in [
        (libc::REG_RIP, to.rip),
        (libc::REG_RSP, to.rsp),
        (libc::REG_RBP, to.rbp),
        (libc::REG_RDI, to.rdi),
        (libc::REG_RSI, to.rsi),
    ] {
        registers[register as usize] = value as i64;
    }
}

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
fn stack_pointer(context: &libc::ucontext_t) -> usize {
    context.uc_mcontext.sp as usize
}

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
unsafe fn leave(context: &mut libc::ucontext_t, handler: &CoroutineTrapHandler<()>) {
    // SAFETY: as the caller promises.
    let to = unsafe { handler.setup_trap_handler(|| ()) };
    let registers = &mut context.uc_mcontext;
    (registers.pc, registers.sp) = (to.pc, to.sp);
    (registers.regs[0], registers.regs[1]) = (to.x0, to.x1);
    (registers.regs[29], registers.regs[30]) = (to.x29, to.lr);
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("the feature `emulator` needs Linux on x86-64 or AArch64");
