//! burn on its CPU backends: convolution passes, and the training step written with burn's own modules and optimiser.
//!
//! `burn-flex` is the backend that burn recommends for the CPU, `burn-ndarray` the deprecated one before it. burn offers no
//! dgrad by itself.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::module::{conv2d, conv2d_weight_backward};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Int, Tensor, TensorData, activation::relu};

use crate::numbers::{labels, mean_abs, seed, uniform};
use crate::works::{Conv, Pass, Peer, Step, Work, sgd};

pub struct Burn {
    device: fn() -> Device,
}

impl Burn {
    pub fn flex() -> Self {
        Self { device: Device::flex }
    }

    #[allow(deprecated)]
    pub fn ndarray() -> Self {
        Self { device: Device::ndarray }
    }
}

impl Peer for Burn {
    fn step(&self, step: &Step) -> Option<Box<dyn Work>> {
        step.is_resnet18().then(|| Box::new(TrainingStep::new(step, (self.device)())) as Box<dyn Work>)
    }

    fn conv(&self, conv: &Conv, pass: Pass) -> Option<Box<dyn Work>> {
        (pass != Pass::Dgrad).then(|| Box::new(Convolution::new(conv.clone(), pass, (self.device)())) as Box<dyn Work>)
    }
}

fn random<const D: usize>(seed: u32, shape: [usize; D], bound: f32, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(uniform(seed, shape.iter().product(), bound), shape), device)
}

/// Backends may compute later than asked: wait, so that the run is timed whole.
fn wait(device: &Device) {
    device.sync().expect("burn");
}

struct Convolution {
    conv: Conv,
    pass: Pass,
    device: Device,
    options: ConvOptions<2>,
    x: Tensor<4>,
    w: Tensor<4>,
    dy: Option<Tensor<4>>,
    results: Vec<Tensor<4>>,
}

impl Convolution {
    fn new(conv: Conv, pass: Pass, device: Device) -> Self {
        let device = if pass == Pass::All { device.autodiff() } else { device };
        let (stride, pad) = (conv.stride, conv.pad);
        let shape = [conv.n, conv.k, conv.p(), conv.q()];
        Self {
            pass,
            options: ConvOptions::new([stride; 2], [pad; 2], [1; 2], 1),
            x: random(seed::X, [conv.n, conv.c, conv.h, conv.w], 1.0, &device),
            w: random(seed::W, [conv.k, conv.c, conv.r, conv.s], 1.0, &device),
            dy: (pass == Pass::Wgrad).then(|| random(seed::DY, shape, 1.0, &device)),
            conv,
            device,
            results: vec![],
        }
    }

    fn compute(&self) -> Vec<Tensor<4>> {
        let (x, w, options) = (self.x.clone(), self.w.clone(), self.options.clone());
        if self.pass == Pass::Fprop {
            return vec![conv2d(x, w, None, options)];
        }
        if let Some(dy) = &self.dy {
            return vec![conv2d_weight_backward(x, w, dy.clone(), options)];
        }
        let w = w.require_grad();
        let x = if self.conv.is_stem() { x } else { x.require_grad() };
        let y = conv2d(x.clone(), w.clone(), None, options);
        let mut gradients = y.backward();
        let dx = x.grad_remove(&mut gradients);
        let dw = w.grad_remove(&mut gradients);
        [Some(y.inner()), dx, dw].into_iter().flatten().collect()
    }
}

impl Work for Convolution {
    fn run(&mut self) {
        self.results = self.compute();
        wait(&self.device);
    }

    fn check(&mut self) -> Vec<f64> {
        let mean = |t: &Tensor<4>| mean_abs(t.clone().into_data().as_slice::<f32>().expect("f32"));
        self.results.iter().map(mean).collect()
    }
}

/// Counts the random weights made so far, and where they go.
struct Builder {
    device: Device,
    random: u32,
}

impl Builder {
    fn weight<const D: usize>(&mut self, shape: [usize; D], bound: f32) -> Tensor<D> {
        self.random += 1;
        random(seed::STEP + self.random - 1, shape, bound, &self.device)
    }

    fn conv_norm(&mut self, [k, c, r, s]: [usize; 4], stride: usize, pad: usize) -> ConvNorm {
        let mut conv = Conv2dConfig::new([c, k], [r, s])
            .with_stride([stride; 2])
            .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
            .with_bias(false)
            .init(&self.device);
        conv.weight = Param::from_tensor(self.weight([k, c, r, s], (6.0 / (c * r * s) as f32).sqrt()));
        ConvNorm { conv, norm: BatchNormConfig::new(k).init(&self.device) }
    }

    fn block(&mut self, c: usize, k: usize, stride: usize) -> Block {
        Block {
            first: self.conv_norm([k, c, 3, 3], stride, 1),
            second: self.conv_norm([k, k, 3, 3], 1, 1),
            shortcut: (stride > 1).then(|| self.conv_norm([k, c, 1, 1], stride, 0)),
        }
    }

    fn head(&mut self, classes: usize) -> Linear {
        let mut head = LinearConfig::new(512, classes).init(&self.device);
        head.weight = Param::from_tensor(self.weight([classes, 512], (1.0f32 / 512.0).sqrt()).transpose());
        head.bias = Some(Param::from_tensor(Tensor::zeros([classes], &self.device)));
        head
    }
}

#[derive(Module, Debug)]
struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm,
}

impl ConvNorm {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.norm.forward(self.conv.forward(x))
    }
}

#[derive(Module, Debug)]
struct Block {
    first: ConvNorm,
    second: ConvNorm,
    shortcut: Option<ConvNorm>,
}

impl Block {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = self.second.forward(relu(self.first.forward(x.clone())));
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        relu(y + shortcut)
    }
}

#[derive(Module, Debug)]
struct ResNet18 {
    stem: ConvNorm,
    pool: Option<MaxPool2d>,
    blocks: Vec<Block>,
    head: Linear,
}

impl ResNet18 {
    fn new(step: &Step, device: &Device) -> Self {
        let mut builder = Builder { device: device.clone(), random: 0 };
        let stem = step.stem();
        let stem = builder.conv_norm([stem.k, 3, stem.r, stem.s], stem.stride, stem.pad);
        let pool =
            MaxPool2dConfig::new([3, 3]).with_strides([2, 2]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1));
        let mut blocks = vec![];
        for (c, k, stride) in [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)] {
            blocks.push(builder.block(c, k, stride));
            blocks.push(builder.block(k, k, 1));
        }
        Self { stem, pool: (!step.is_small()).then(|| pool.init()), blocks, head: builder.head(step.classes) }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let mut x = relu(self.stem.forward(x));
        if let Some(pool) = &self.pool {
            x = pool.forward(x);
        }
        for block in &self.blocks {
            x = block.forward(x);
        }
        let [n, k, h, w] = x.dims();
        self.head.forward(x.reshape([n, k, h * w]).mean_dim(2).reshape([n, k]))
    }
}

struct TrainingStep {
    device: Device,
    /// Taken out and put back: burn's optimiser consumes the network and returns the next one.
    network: Option<ResNet18>,
    optimizer: ModuleOptimizer,
    loss: CrossEntropyLoss,
    x: Tensor<4>,
    labels: Tensor<1, Int>,
    losses: Vec<f64>,
}

impl TrainingStep {
    fn new(step: &Step, device: Device) -> Self {
        let device = device.autodiff();
        let momentum = MomentumConfig::new().with_momentum(sgd::MOMENTUM).with_dampening(0.0);
        let decay = WeightDecayConfig::new(sgd::WEIGHT_DECAY as f32);
        let labels: Vec<i64> = labels(step.n, step.classes).into_iter().map(|label| label as i64).collect();
        Self {
            network: Some(ResNet18::new(step, &device)),
            optimizer: SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(Some(decay)).init(),
            loss: CrossEntropyLossConfig::new().init(&device),
            x: random(seed::X, [step.n, 3, step.px, step.px], 1.0, &device),
            labels: Tensor::from_data(TensorData::new(labels, [step.n]), &device),
            losses: vec![],
            device,
        }
    }
}

impl Work for TrainingStep {
    fn run(&mut self) {
        let network = self.network.take().expect("a network between steps");
        let loss = self.loss.forward(network.forward(self.x.clone()), self.labels.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        self.network = Some(self.optimizer.step(sgd::LEARNING_RATE, network, gradients));
        self.losses.push(loss.into_scalar::<f32>() as f64);
        wait(&self.device);
    }

    fn check(&mut self) -> Vec<f64> {
        self.losses[..2].to_vec()
    }
}
