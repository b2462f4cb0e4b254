//! The CUDA driver: contexts, streams, events and launches, each call checked. The only module beside [`crate::memory`] with
//! unsafe code.
//!
//! Work happens in the primary context of a device, which is torch's too, so that addresses and streams are shared. A device
//! is opened once and kept until the process ends. The driver is loaded when the first device is looked for; where there is
//! none, nothing here is ever called.

use std::ffi::{CString, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use hps_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use crate::images;
use crate::kernels::{Functions, Unit};

/// Number of devices of this machine; 0 without a driver.
pub fn device_count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        // SAFETY: only tries to load libcuda.so.
        let is_present = unsafe { sys::is_culib_present() };
        let count = || result::init().and_then(|()| result::device::get_count());
        if is_present { count().ok().and_then(|count| usize::try_from(count).ok()).unwrap_or(0) } else { 0 }
    })
}

/// A GPU with our kernels in it.
#[derive(Debug)]
pub(crate) struct Device {
    ordinal: usize,
    name: String,
    context: Context,
    functions: Functions,
    num_processors: u32,
    l2_bytes: u64,
    /// After an error that has ended the context: nothing works on this device any more.
    is_lost: AtomicBool,
}

/// Those that were opened.
static DEVICES: Mutex<Vec<&'static Device>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, Copy)]
struct Context(sys::CUcontext);

// SAFETY: a context is a handle; the driver lets any thread make it current.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Device {
    /// The device of an ordinal, opened on first use and kept until the process ends.
    ///
    /// # Errors
    /// `NotFound` if there is no such device; `Unsupported` if our kernels do not run on it; `Device` for what the driver
    /// reports.
    pub(crate) fn open(ordinal: usize) -> Result<&'static Self> {
        let mut devices = DEVICES.lock();
        if let Some(device) = devices.iter().find(|device| device.ordinal == ordinal) {
            return Ok(device);
        }
        let device: &'static Self = Box::leak(Box::new(Self::new(ordinal)?));
        devices.push(device);
        Ok(device)
    }

    /// Enters this device or, if it is lost, any other that was opened: for what concerns all of them.
    pub(crate) fn enter_any(&self) -> Result<Entered> {
        self.enter().or_else(|why| {
            let devices = DEVICES.lock();
            devices.iter().find_map(|device| device.enter().ok()).ok_or(why)
        })
    }

    fn new(ordinal: usize) -> Result<Self> {
        let count = device_count();
        let number = i32::try_from(ordinal).ok().filter(|_| ordinal < count).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "deployed_device_list names GPU {ordinal}, but this machine has {count}, numbered from 0; correct \
                     the list, or look at CUDA_VISIBLE_DEVICES"
                ),
            )
        })?;
        let failed = |what: &'static str| move |why| plain_error(ordinal, what, why);
        let handle = result::device::get(number).map_err(failed("find the device"))?;
        let name = result::device::get_name(handle).map_err(failed("tell the name of the device"))?;
        let attribute = |attribute| {
            // SAFETY: `handle` is a device of this machine.
            unsafe { result::device::get_attribute(handle, attribute) }
                .map_err(failed("tell a property of the device"))
        };
        use sys::CUdevice_attribute_enum as Attribute;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let num_processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let l2_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        let images = images::for_capability(major.unsigned_abs(), minor.unsigned_abs())
            .map_err(|error| error.at("device", format!("{ordinal}, {name}")))?;
        // SAFETY: `handle` is a device of this machine. The reference to its primary context is never given back.
        let context =
            unsafe { result::primary_ctx::retain(handle) }.map_err(failed("open the primary context"))?;
        let context = Context(context);
        let entered = Entered::new(ordinal, context)?;
        let functions = Functions::load(|unit| {
            let image = images.unit(unit.name()).ok_or_else(|| {
                Error::new(
                    ErrorKind::Internal,
                    format!("the kernels of {} are not in the library", unit.name()),
                )
            })?;
            // SAFETY: the image was compiled for this device's architecture and lives as long as the process.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
                .map_err(failed("load the kernels"))?;
            Ok(Module(module))
        })?;
        drop(entered);
        Ok(Self {
            ordinal,
            name,
            context,
            functions,
            num_processors: num_processors.unsigned_abs(),
            l2_bytes: u64::from(l2_bytes.unsigned_abs()),
            is_lost: AtomicBool::new(false),
        })
    }

    pub(crate) fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn functions(&self) -> &Functions {
        &self.functions
    }

    /// Bytes of the second-level cache.
    pub(crate) fn l2_bytes(&self) -> u64 {
        self.l2_bytes
    }

    /// Streaming multiprocessors.
    pub(crate) fn num_processors(&self) -> u32 {
        self.num_processors
    }

    /// Makes the device's context current for the calling thread, until the result is dropped.
    ///
    /// # Errors
    /// `Device` if the device is lost.
    pub(crate) fn enter(&self) -> Result<Entered> {
        if self.is_lost() {
            return Err(self.lost());
        }
        Entered::new(self.ordinal, self.context)
    }

    /// True after an error that ended the context.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    fn lost(&self) -> Error {
        Error::new(
            ErrorKind::Device,
            "device lost, restart the process: an earlier error (an illegal memory access, for instance, by any code of this \
             process) has ended CUDA's context on this device",
        )
        .at("device", format!("{}, {}", self.ordinal, self.name))
    }

    /// Turns a failure of the driver into an error, and notes if it has ended the context.
    pub(crate) fn error(&self, what: &str, why: DriverError) -> Error {
        use sys::cudaError_enum as Code;
        match why.0 {
            Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_ASSERT
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_ECC_UNCORRECTABLE
            | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
            // At the end of the process the driver goes before our threads do.
            | Code::CUDA_ERROR_DEINITIALIZED
            | Code::CUDA_ERROR_UNKNOWN => {
                self.is_lost.store(true, Ordering::Relaxed);
                self.lost().caused_by(text(why))
            }
            _ => plain_error(self.ordinal, what, why),
        }
    }

    /// Bytes of GPU memory that are free. The device must have been entered.
    pub(crate) fn free_bytes(&self) -> Result<u64> {
        let (free, _) =
            result::mem_get_info().map_err(|why| self.error("tell how much memory is free", why))?;
        Ok(free as u64)
    }

    /// Starts a kernel. The device must have been entered.
    ///
    /// # Safety
    /// `function` takes one parameter of type `P`; every address in it is valid for what the kernel does with it until the
    /// kernel has ended.
    pub(crate) unsafe fn launch<P>(
        &self,
        function: Function,
        num_blocks: u32,
        num_threads: u32,
        stream: StreamHandle,
        parameters: &P,
    ) -> Result<()> {
        let mut arguments = [std::ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies the parameters before it returns; the caller answers for the rest.
        unsafe {
            result::launch_kernel(
                function.0,
                (num_blocks, 1, 1),
                (num_threads, 1, 1),
                0,
                stream.0 as sys::CUstream,
                &mut arguments,
            )
        }
        .map_err(|why| self.error("start a kernel", why))
    }

    /// Fills device memory with a byte, in stream order.
    ///
    /// # Safety
    /// `num_bytes` bytes at `address` are device memory that nobody else uses until the stream has passed this point.
    pub(crate) unsafe fn fill(
        &self,
        address: u64,
        byte: u8,
        num_bytes: usize,
        stream: StreamHandle,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(address, byte, num_bytes, stream.0 as sys::CUstream) }
            .map_err(|why| self.error("fill device memory", why))
    }

    /// Copies host memory to device memory; complete when it returns.
    ///
    /// # Safety
    /// `bytes.len()` bytes at `address` are device memory that nothing else uses meanwhile.
    pub(crate) unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let failed = |why| self.error("copy to the device", why);
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_htod_sync(address, bytes) }.map_err(failed)?;
        // The bytes may still be on their way from the driver's own buffer, in the default stream.
        // SAFETY: the default stream always exists.
        unsafe { result::stream::synchronize(result::stream::null()) }.map_err(failed)
    }

    /// Copies device memory to host memory in the order of `stream`; complete when it returns.
    ///
    /// # Safety
    /// `bytes.len()` initialised bytes at `address` are device memory that nothing writes meanwhile, but for words that are
    /// written whole.
    pub(crate) unsafe fn read(&self, address: u64, bytes: &mut [u8], stream: &Stream) -> Result<()> {
        // SAFETY: the caller's promise; the copy has ended when the stream was synchronised.
        unsafe { result::memcpy_dtoh_async(bytes, address, stream.handle().0 as sys::CUstream) }
            .map_err(|why| self.error("copy from the device", why))?;
        stream.synchronize()
    }

    /// True if work sent to the stream would be captured into a graph instead of run.
    pub(crate) fn is_capturing(&self, stream: StreamHandle) -> Result<bool> {
        // SAFETY: a stream of the caller's, or the null stream.
        let status = unsafe { result::stream::is_capturing(stream.0 as sys::CUstream) }
            .map_err(|why| self.error("tell whether a stream is being captured", why))?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Waits until all work on the device has ended, in any stream of its context. The device must have been entered.
    pub(crate) fn synchronize(&self) -> Result<()> {
        result::ctx::synchronize().map_err(|why| self.error("wait for the device", why))
    }

    /// True if all work sent to the stream has ended.
    pub(crate) fn is_idle(&self, stream: StreamHandle) -> Result<bool> {
        // SAFETY: a stream of the caller's, or the null stream.
        match unsafe { sys::cuStreamQuery(stream.0 as sys::CUstream) } {
            sys::cudaError_enum::CUDA_SUCCESS => Ok(true),
            sys::cudaError_enum::CUDA_ERROR_NOT_READY => Ok(false),
            why => Err(self.error("ask a stream how far it is", DriverError(why))),
        }
    }
}

/// While this lives, the calling thread's current context is a device's, and its calls do not disturb anybody's capture;
/// dropped, both are again what they were.
#[derive(Debug)]
pub(crate) struct Entered {
    previous: Option<sys::CUcontext>,
    is_changed: bool,
    _safe: CaptureSafe,
}

impl Entered {
    fn new(ordinal: usize, Context(context): Context) -> Result<Self> {
        let failed = |why| plain_error(ordinal, "make its context current", why);
        let previous = result::ctx::get_current().map_err(failed)?;
        if previous == Some(context) {
            return Ok(Self { previous, is_changed: false, _safe: CaptureSafe::new() });
        }
        // SAFETY: the primary context is never released.
        unsafe { result::ctx::set_current(context) }.map_err(failed)?;
        Ok(Self { previous, is_changed: true, _safe: CaptureSafe::new() })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.is_changed {
            // SAFETY: the context that was current before, or none.
            let _ = unsafe { result::ctx::set_current(self.previous.unwrap_or(std::ptr::null_mut())) };
        }
    }
}

/// While this lives, calls of this thread do not disturb a capture that another one, or a caller, has begun.
#[derive(Debug)]
pub struct CaptureSafe(Option<sys::CUstreamCaptureMode>);

impl CaptureSafe {
    /// Does nothing on a machine without GPUs.
    pub fn new() -> Self {
        if device_count() == 0 {
            return Self(None);
        }
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: swaps a number that belongs to this thread.
        let code = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        Self((code == sys::cudaError_enum::CUDA_SUCCESS).then_some(mode))
    }
}

impl Default for CaptureSafe {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for CaptureSafe {
    fn drop(&mut self) {
        if let Some(mut mode) = self.0 {
            // SAFETY: as in `new`.
            let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        }
    }
}

/// A stream, ours or a caller's, as a number. 0 is the legacy default stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamHandle(pub(crate) u64);

/// A stream of ours. Its device must have been entered for every call.
#[derive(Debug)]
pub(crate) struct Stream {
    device: &'static Device,
    handle: StreamHandle,
}

impl Stream {
    pub(crate) fn new(device: &'static Device) -> Result<Self> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|why| device.error("make a stream", why))?;
        Ok(Self { device, handle: StreamHandle(stream as u64) })
    }

    pub(crate) fn handle(&self) -> StreamHandle {
        self.handle
    }

    /// Waits until all work sent so far has ended.
    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.handle.0 as sys::CUstream) }
            .map_err(|why| self.device.error("wait for a stream", why))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: made by `new`, not destroyed before; work under way goes on.
            let _ = unsafe { result::stream::destroy(self.handle.0 as sys::CUstream) };
        }
    }
}

/// A point in a stream. Its device must have been entered for every call.
#[derive(Debug)]
pub(crate) struct Event {
    device: &'static Device,
    event: u64,
}

impl Event {
    pub(crate) fn new(device: &'static Device) -> Result<Self> {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map_err(|why| device.error("make an event", why))?;
        Ok(Self { device, event: event as u64 })
    }

    /// The same, for [`Self::us_since`].
    #[cfg(test)]
    pub(crate) fn timed(device: &'static Device) -> Result<Self> {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map_err(|why| device.error("make an event", why))?;
        Ok(Self { device, event: event as u64 })
    }

    /// Microseconds between `start` and this event, both of which are timed and have passed.
    #[cfg(test)]
    pub(crate) fn us_since(&self, start: &Self) -> Result<f64> {
        // SAFETY: both events live.
        unsafe { result::event::elapsed(start.event as sys::CUevent, self.event as sys::CUevent) }
            .map(|ms| f64::from(ms) * 1e3)
            .map_err(|why| self.device.error("tell the time between two events", why))
    }

    /// Stands for all work sent to the stream so far.
    pub(crate) fn record(&self, stream: StreamHandle) -> Result<()> {
        // SAFETY: event and stream live.
        unsafe { result::event::record(self.event as sys::CUevent, stream.0 as sys::CUstream) }
            .map_err(|why| self.device.error("record an event", why))
    }

    /// True once that work has ended; true as well if it was never recorded.
    pub(crate) fn has_passed(&self) -> Result<bool> {
        // SAFETY: the event lives.
        match unsafe { result::event::query(self.event as sys::CUevent) } {
            Ok(()) => Ok(true),
            Err(why) if why.0 == sys::cudaError_enum::CUDA_ERROR_NOT_READY => Ok(false),
            Err(why) => Err(self.device.error("ask for an event", why)),
        }
    }

    /// Lets work that is sent to `stream` from now on wait for that work.
    pub(crate) fn delay(&self, stream: StreamHandle) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream live.
        unsafe { result::stream::wait_event(stream.0 as sys::CUstream, self.event as sys::CUevent, flags) }
            .map_err(|why| self.device.error("let a stream wait for an event", why))
    }

    /// Waits until that work has ended.
    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.event as sys::CUevent) }
            .map_err(|why| self.device.error("wait for an event", why))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: made by `new`, not destroyed before.
            let _ = unsafe { result::event::destroy(self.event as sys::CUevent) };
        }
    }
}

/// Kernels of one file, loaded into a context.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Module(sys::CUmodule);

/// A kernel, loaded into a context. Modules are never unloaded, so it is valid until the process ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Function(sys::CUfunction);

// SAFETY: a handle that any thread may launch in its context.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    pub(crate) fn function(self, unit: Unit, name: &str) -> Result<Function> {
        let missing =
            || Error::new(ErrorKind::Internal, format!("there is no kernel {name} in {}", unit.name()));
        let name = CString::new(name).map_err(|_| missing())?;
        // SAFETY: the module was loaded and is never unloaded.
        unsafe { result::module::get_function(self.0, name) }.map(Function).map_err(|_| missing())
    }
}

/// Makes pages of host memory readable by all GPUs at their own addresses.
///
/// # Safety
/// The pages are the caller's and stay mapped until [`unpin`].
pub(crate) unsafe fn pin(address: u64, num_bytes: usize) -> std::result::Result<(), DriverError> {
    const PORTABLE_AND_MAPPED: c_uint = 1 | 2;
    // SAFETY: the caller's promise.
    unsafe { sys::cuMemHostRegister_v2(address as *mut c_void, num_bytes, PORTABLE_AND_MAPPED) }.result()?;
    let mut device_address = 0;
    // SAFETY: the memory was just registered.
    let code = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device_address, address as *mut c_void, 0) };
    if code != sys::cudaError_enum::CUDA_SUCCESS || device_address != address {
        // SAFETY: as above.
        let _ = unsafe { sys::cuMemHostUnregister(address as *mut c_void) };
        return Err(DriverError(sys::cudaError_enum::CUDA_ERROR_NOT_SUPPORTED));
    }
    Ok(())
}

/// Undoes [`pin`].
///
/// # Safety
/// `address` was given to `pin`, and no kernel reads it any more.
pub(crate) unsafe fn unpin(address: u64) {
    // SAFETY: the caller's promise.
    let _ = unsafe { sys::cuMemHostUnregister(address as *mut c_void) };
}

/// Takes device memory in the current context.
pub(crate) fn allocate(device: &Device, num_bytes: usize) -> Result<u64> {
    // SAFETY: plain memory, not read before it is written.
    unsafe { result::malloc_sync(num_bytes) }
        .map_err(|why| device.error(&format!("allocate {num_bytes} bytes of GPU memory"), why))
}

/// Gives device memory back.
///
/// # Safety
/// `address` came from [`allocate`] and is not used any more.
pub(crate) unsafe fn free(address: u64) {
    // SAFETY: the caller's promise.
    let _ = unsafe { result::free_sync(address) };
}

fn plain_error(ordinal: usize, what: &str, why: DriverError) -> Error {
    let kind = match why.0 {
        sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        _ => ErrorKind::Device,
    };
    Error::new(kind, format!("CUDA could not {what}")).at("device", ordinal).caused_by(text(why))
}

/// The driver's name and words for an error.
pub(crate) fn text(why: DriverError) -> String {
    let name = why.error_name().map(|name| name.to_string_lossy().into_owned());
    let words = why.error_string().map(|words| words.to_string_lossy().into_owned());
    match (name, words) {
        (Ok(name), Ok(words)) => format!("{name} ({words})"),
        _ => format!("CUDA error {}", why.0 as u32),
    }
}
