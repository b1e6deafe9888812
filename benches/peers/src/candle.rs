//! candle on the CPU: convolution forward, forward with backward, and the training step.
//!
//! What candle lacks is written with what it has, and noted here because it costs time that is not candle's fault:
//! * its max-pool has no padding, and no backward where windows overlap: `max_pool` is a maximum of shifted views;
//! * its SGD has no momentum and no weight decay: `update` spells them out.
//!
//! Its backward always computes both gradients of a convolution, so the stem's passes include a dgrad that others skip.

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::{BatchNorm, ModuleT};

use crate::numbers::{labels, mean_abs, seed, uniform};
use crate::works::{Conv, Pass, Peer, Step, Work, sgd};

pub struct Candle;

impl Peer for Candle {
    fn step(&self, step: &Step) -> Option<Box<dyn Work>> {
        step.is_resnet18().then(|| Box::new(TrainingStep::new(step).expect("candle")) as Box<dyn Work>)
    }

    fn conv(&self, conv: &Conv, pass: Pass) -> Option<Box<dyn Work>> {
        match pass {
            Pass::Fprop | Pass::All => {
                Some(Box::new(Convolution::new(conv.clone(), pass == Pass::All).expect("candle")))
            }
            Pass::Dgrad | Pass::Wgrad => None,
        }
    }
}

fn random<S: Into<candle_core::Shape>>(seed: u32, shape: S, bound: f32) -> Result<Tensor> {
    let shape = shape.into();
    Tensor::from_vec(uniform(seed, shape.elem_count(), bound), shape, &Device::Cpu)
}

fn mean_abs_of(tensor: &Tensor) -> f64 {
    mean_abs(&tensor.flatten_all().and_then(|t| t.to_vec1()).expect("candle"))
}

struct Convolution {
    conv: Conv,
    backward: bool,
    x: Var,
    w: Var,
    results: Vec<Tensor>,
}

impl Convolution {
    fn new(conv: Conv, backward: bool) -> Result<Self> {
        let x = Var::from_tensor(&random(seed::X, (conv.n, conv.c, conv.h, conv.w), 1.0)?)?;
        let w = Var::from_tensor(&random(seed::W, (conv.k, conv.c, conv.r, conv.s), 1.0)?)?;
        Ok(Self { conv, backward, x, w, results: vec![] })
    }

    fn compute(&self) -> Result<Vec<Tensor>> {
        if !self.backward {
            let (x, w) = (self.x.as_detached_tensor(), self.w.as_detached_tensor());
            return Ok(vec![x.conv2d(&w, self.conv.pad, self.conv.stride, 1, 1)?]);
        }
        let y = self.x.conv2d(&self.w, self.conv.pad, self.conv.stride, 1, 1)?;
        let mut gradients = y.backward()?;
        let dx = gradients.remove(&self.x).filter(|_| !self.conv.is_stem());
        let dw = gradients.remove(&self.w);
        Ok([Some(y), dx, dw].into_iter().flatten().collect())
    }
}

impl Work for Convolution {
    fn run(&mut self) {
        self.results = self.compute().expect("candle");
    }

    fn check(&mut self) -> Vec<f64> {
        self.results.iter().map(mean_abs_of).collect()
    }
}

/// Learned tensors in the order they are made, and their momenta.
#[derive(Default)]
struct Parameters {
    learned: Vec<Var>,
    momenta: Vec<Tensor>,
    random: u32,
}

impl Parameters {
    fn add(&mut self, tensor: Tensor) -> Result<Tensor> {
        let var = Var::from_tensor(&tensor)?;
        self.momenta.push(var.zeros_like()?);
        self.learned.push(var.clone());
        Ok(var.into_inner())
    }

    fn weight<S: Into<candle_core::Shape>>(&mut self, shape: S, bound: f32) -> Result<Tensor> {
        self.random += 1;
        let tensor = random(seed::STEP + self.random - 1, shape, bound)?;
        self.add(tensor)
    }

    fn batch_norm(&mut self, channels: usize) -> Result<BatchNorm> {
        let zeros = || Tensor::zeros(channels, candle_core::DType::F32, &Device::Cpu);
        let ones = || Tensor::ones(channels, candle_core::DType::F32, &Device::Cpu);
        let (weight, bias) = (self.add(ones()?)?, self.add(zeros()?)?);
        BatchNorm::new(channels, zeros()?, ones()?, weight, bias, 1e-5)
    }

    /// v = momentum·v + (g + decay·w);  w −= rate·v
    fn update(&mut self, gradients: &candle_core::backprop::GradStore) -> Result<()> {
        for (var, v) in self.learned.iter().zip(&mut self.momenta) {
            let g = gradients.get(var).expect("every parameter has a gradient");
            let w = var.as_detached_tensor();
            *v = ((&*v * sgd::MOMENTUM)? + (g + (&w * sgd::WEIGHT_DECAY)?)?)?;
            var.set(&(w - (&*v * sgd::LEARNING_RATE)?)?)?;
        }
        Ok(())
    }
}

struct ConvNorm {
    w: Tensor,
    norm: BatchNorm,
    stride: usize,
    pad: usize,
}

impl ConvNorm {
    fn new(parameters: &mut Parameters, [k, c, r, s]: [usize; 4], stride: usize, pad: usize) -> Result<Self> {
        let w = parameters.weight((k, c, r, s), (6.0 / (c * r * s) as f32).sqrt())?;
        Ok(Self { w, norm: parameters.batch_norm(k)?, stride, pad })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward_t(&x.conv2d(&self.w, self.pad, self.stride, 1, 1)?, true)
    }
}

struct Block {
    first: ConvNorm,
    second: ConvNorm,
    shortcut: Option<ConvNorm>,
}

impl Block {
    fn new(parameters: &mut Parameters, c: usize, k: usize, stride: usize) -> Result<Self> {
        Ok(Self {
            first: ConvNorm::new(parameters, [k, c, 3, 3], stride, 1)?,
            second: ConvNorm::new(parameters, [k, k, 3, 3], 1, 1)?,
            shortcut: (stride > 1).then(|| ConvNorm::new(parameters, [k, c, 1, 1], stride, 0)).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.second.forward(&self.first.forward(x)?.relu()?)?;
        let shortcut = self.shortcut.as_ref().map_or(Ok(x.clone()), |shortcut| shortcut.forward(x))?;
        (y + shortcut)?.relu()
    }
}

struct TrainingStep {
    parameters: Parameters,
    stem: ConvNorm,
    max_pool: bool,
    blocks: Vec<Block>,
    head: (Tensor, Tensor),
    x: Tensor,
    labels: Tensor,
    losses: Vec<f64>,
}

impl TrainingStep {
    fn new(step: &Step) -> Result<Self> {
        let parameters = &mut Parameters::default();
        let stem = step.stem();
        let stem = ConvNorm::new(parameters, [stem.k, 3, stem.r, stem.s], stem.stride, stem.pad)?;
        let mut blocks = vec![];
        for (c, k, stride) in [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)] {
            blocks.push(Block::new(parameters, c, k, stride)?);
            blocks.push(Block::new(parameters, k, k, 1)?);
        }
        let weight = parameters.weight((step.classes, 512), (1.0f32 / 512.0).sqrt())?;
        let bias = parameters.add(Tensor::zeros(step.classes, candle_core::DType::F32, &Device::Cpu)?)?;
        let labels: Vec<u32> = labels(step.n, step.classes).into_iter().map(|label| label as u32).collect();
        Ok(Self {
            stem,
            max_pool: !step.is_small(),
            blocks,
            head: (weight, bias),
            x: random(seed::X, (step.n, 3, step.px, step.px), 1.0)?,
            labels: Tensor::from_vec(labels, step.n, &Device::Cpu)?,
            losses: vec![],
            parameters: std::mem::take(parameters),
        })
    }

    fn compute(&mut self) -> Result<f64> {
        let mut x = self.stem.forward(&self.x)?.relu()?;
        if self.max_pool {
            x = max_pool(&x)?;
        }
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let features = x.mean((D::Minus2, D::Minus1))?;
        let logits = features.matmul(&self.head.0.t()?)?.broadcast_add(&self.head.1)?;
        let loss = candle_nn::loss::cross_entropy(&logits, &self.labels)?;
        self.parameters.update(&loss.backward()?)?;
        Ok(loss.to_scalar::<f32>()? as f64)
    }
}

/// 3 × 3, stride 2, padding 1, of non-negative x with even H and W: along each axis, window i covers 2i−1, 2i, 2i+1.
/// Zero serves as padding because x went through a ReLU.
fn max_pool(x: &Tensor) -> Result<Tensor> {
    fn along(x: &Tensor, axis: usize) -> Result<Tensor> {
        let mut dims = x.dims().to_vec();
        dims[axis] /= 2;
        dims.insert(axis + 1, 2);
        let pairs = x.reshape(dims)?;
        let even = pairs.narrow(axis + 1, 0, 1)?.squeeze(axis + 1)?;
        let odd = pairs.narrow(axis + 1, 1, 1)?.squeeze(axis + 1)?;
        let before = odd.narrow(axis, 0, odd.dim(axis)? - 1)?.pad_with_zeros(axis, 1, 0)?;
        even.maximum(&odd)?.maximum(&before)
    }
    along(&along(x, 2)?, 3)
}

impl Work for TrainingStep {
    fn run(&mut self) {
        let loss = self.compute().expect("candle");
        self.losses.push(loss);
    }

    fn check(&mut self) -> Vec<f64> {
        self.losses[..2].to_vec()
    }
}
