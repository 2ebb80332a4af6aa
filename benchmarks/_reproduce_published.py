"""Published figures that the table of results stands beside, each with the data and the source that it has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A figure of a paper, in the unit of the claim that it belongs to.

    Attributes:
        gain: The method's figure minus its baseline's.
        data: Of which networks and data.
        source: Key into ``SOURCES``.
        method: The method's figure, where there is one.
        baseline: The baseline's.
    """

    gain: float
    data: str
    source: str
    method: float | None = None
    baseline: float | None = None


def both(method: float, baseline: float, data: str, source: str) -> Published:
    return Published(round(method - baseline, 4), data, source, method, baseline)


SOURCES = {
    "FPTT": "Kag, Saligrama. Training Recurrent Neural Networks via Forward Propagation Through Time. ICML 2021: "
    "table as copied in a project report of TU Eindhoven (`federicohyo/HWRNNFPTT`)",
    "FPTT, costs": "the same paper's table of costs",
    "FPTT, repeated": "thesis of TU Eindhoven in `federicohyo/HWRNNFPTT`, which runs the authors' code again, "
    "without the regulariser",
    "FPTT, logs": "training logs in `byin-cwi/sFPTT`, a spiking follow-up of FPTT: mean error of the last 100 of "
    "10,000 batches",
    "wRNN": "table of the wRNN paper, which quotes Kag, Zhang, Saligrama. RNNs Incrementally Evolving on an "
    "Equilibrium Manifold. ICLR 2020",
    "Global": "poster at CVPR 2022 of Kag, Saligrama on condensing CNNs with partial differential equations",
    "Interpolation": "research statement of A. Kag, on a pre-print with Wadhwa, Saligrama, Jain: up to 40 % of "
    "the compute saved without loss",
    "OSP": "poster at AISTATS 2021 of Gangrade, Kag, Saligrama on one-sided prediction",
    "SAT": "table in the repository `SAT-selective-cls` of Feng et al., 2023, of three runs; error among the answered",
    "DiSK": "poster at ICLR 2023 of Kag, Acar, Gangrade, Saligrama. Scaffolding a Student to Instill Knowledge",
    "Hybrid": "poster at ICLR 2023 of Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by "
    "Selective Query; read off its curves to about 0.1 points",
    "Survey": "Menghani. Efficient Deep Learning: A Survey on Making Deep Learning Models Smaller, Faster, and "
    "Better. 2021: tables 1 and 2",
}

FPTT_IMAGES = both(98.67, 97.71, "MNIST by pixels, 784 steps, LSTM 128, K = 10", "FPTT")
CHUNKED_IMAGES = both(66.8, 56.3, "CIFAR-10 by pixels, 1,024 steps, LSTM 128, 8 parts over 1", "FPTT, repeated")
ADDING = both(0.00095, 0.170, "500 steps, LSTM 128, 10,000 batches of 128", "FPTT, logs")
MEMORY = both(10.0, 100.0, "K times less for K parts, here 10", "FPTT, costs")
IRNN = both(54.5, 11.6, "noise-padded CIFAR-10, 1,000 steps, 12,000 weights over an LSTM of 116,000", "wRNN")
GLOBAL_BASE = both(91.9, 92.4, "CIFAR-10, ResNet-32, 15 for 70 million MACs", "Global")
GLOBAL_NARROW = both(74.3, 70.4, "CIFAR-100, 119 million MACs over ResNet-56 of 127", "Global")
INTERPOLATION = Published(0.0, "ImageNet, MobileNetV3 and EfficientNet", "Interpolation")
OSP = both(74.0, 67.2, "CIFAR-10, ResNet-32, joint risk 1.0 and 1.1 %", "OSP")
SELECTIVENET = both(2.43, 2.89, "CIFAR-10, VGG16-BN", "SAT")
GAMBLERS = both(2.19, 2.89, "CIFAR-10, VGG16-BN", "SAT")
SAT = both(1.93, 2.89, "CIFAR-10, VGG16-BN", "SAT")
DISK_KD = both(58.14, 54.92, "CIFAR-100, ResNet10-l (72.0 %) to ResNet10-s", "DiSK")
KD_CE = both(54.92, 52.16, "CIFAR-100, ResNet10-l (72.0 %) to ResNet10-s", "DiSK")
HYBRID_ENTROPY = both(76.8, 74.9, "ImageNet, MobileNetV3 (67.6 %) and an OFA network; their router", "Hybrid")
PRUNED = both(67.7, 72.0, "ImageNet, MobileNetV2, 75 % of the weights", "Survey")
STATIC = both(63.7, 71.9, "ImageNet, MobileNetV2, after training", "Survey")
AWARE = both(70.9, 71.9, "ImageNet, MobileNetV2, training with fake quantisation", "Survey")

WHY: dict[str, str] = {
    "fptt": "Training in parts gives the gain over plain back-propagation; FPTT's regulariser adds nothing to it "
    "here and delays the adding problem, where the error stays at that of answering 1 to everything. The "
    "published run of that problem has more than six times as many batches, twice as large, and the authors' "
    "released script for it runs without the regulariser. A repetition of their code (*FPTT, repeated*) finds the "
    "same on images: with and without it within 1.5 points of each other at 7 to 14 parts. MNIST by rows is "
    "short: plain back-propagation is near its ceiling. The memory is a tenth, and what a step needs whatever the "
    "length. See `fptt_tasks.py`, `fptt_adding.py` and `fptt_memory.py` in [Benchmarks](benchmarks.md).",
    "chunked": "The published sequences have 1,024 steps, the rows of MNIST 28, where plain back-propagation is "
    "near its ceiling. On the adding problem our runs end after 1,500 batches of 64, the published after 10,000 "
    "of 128: some of ours are on their way when they end. The memory is a tenth, and what a step needs whatever "
    "the length. See `fptt_tasks.py`, `fptt_adding.py` and `fptt_memory.py` in [Benchmarks](benchmarks.md).",
    "irnn": "The published task pads 32 steps of image with 968 of noise, which an LSTM does not get through; "
    "sequences here are short and without noise, and the LSTM learns. Our incremental network has about a quarter "
    "of the LSTM's weights, and its options are the best of a few that were tried on one seed. Long noisy "
    "sequences have not been run: no study here shows the published gain.",
    "global": "A plain depthwise convolution in the layer's place is ahead of it on average in all rows, so that what "
    "it gains over a narrow network is the gain of condensing. Networks and data here are far smaller, with 64 to 65 "
    "% fewer MACs than the whole network, and are trained for 12 to 30 epochs instead of 300. Two independent "
    "repetitions of the paper also find it 2 to 3 points below ResNet-32, instead of 0.5. See `blocks_images.py` "
    "in [Benchmarks](benchmarks.md).",
    "interpolation": "More is saved here, 53 to 57 % of the MACs against up to 40 %, and digits have 8 pixels a "
    "side, so that a quarter of them leaves little to work with. Training takes 12 to 30 epochs. See "
    "`blocks_images.py` in [Benchmarks](benchmarks.md).",
    "osp": "Backbones here are shallow, most do not fit their training images, and they are trained for 12 to 40 "
    "epochs instead of 200. Where a network is often wrong, few images are answered at 1 % of joint risk; on "
    "digits the share is noisy, as the test part has 300 images. The threshold-free AUGRC shows the smaller "
    "differences that are left. See `selective_images.py` in [Benchmarks](benchmarks.md).",
    "selectivenet": "It needs longer than this budget: when training stops its classifier is less accurate than "
    "the baseline's. The published runs have 300 epochs of VGG16. See `selective_images.py` in "
    "[Benchmarks](benchmarks.md).",
    "gamblers": "Within a short run the abstention logit holds back the classifier; the published runs have 300 "
    "epochs, of which the first 100 are plain cross-entropy where the payoff is small. Ranked by softmax response "
    "the same networks are nearer to the baseline, and still behind it. See `selective_images.py` in "
    "[Benchmarks](benchmarks.md).",
    "sat": "It corrects targets that the network has come to disbelieve, which takes a network that fits its "
    "training set and a long run: 300 epochs in the published ones. With the entropy term and ranked by softmax "
    "response it is level with the baseline, and ahead by AUGRC where the network fits its training set (2,000 "
    "images of FashionMNIST). See `selective_images.py` in [Benchmarks](benchmarks.md).",
    "disk": "Help pays where the student is far too small for its task, as in the generated task. The students of "
    "digits, FashionMNIST and CIFAR-10 are nearer to their teachers, and KD is ahead. The published runs give "
    "DiSK three times the student's epochs, from a trained start, on 100 classes. See `disk_toy.py` and "
    "`disk_images.py` in [Benchmarks](benchmarks.md).",
    "kd": "Students of the generated task are so small that the teacher's probabilities tell them nothing that "
    "the labels do not; on digits and FashionMNIST cross-entropy is within 5 to 6 points of the teacher, and "
    "there is little to gain. The published pair has 20 points between them. On CIFAR-10, with 17 points between "
    "them, the gain is as published. See `disk_images.py` in [Benchmarks](benchmarks.md).",
    "gain": "On a plain pair the base's own confidence says nearly all that a router can know, and what is left "
    "is the gain of the largest probability over entropy. Where the large network is uneven or inputs are "
    "hopeless, the router is well ahead. Over the largest probability nothing was published. The published router "
    "is another one, of ImageNet's 1,000 classes. See `hybrid_digits.py` and `hybrid_images.py` in "
    "[Benchmarks](benchmarks.md).",
    "pruning": "80 % of the weights go here, 75 % in the published run, and the networks are small already.",
    "int8": "The loss is that of a small network trained on few images, and as large as the published one within "
    "its spread over the seeds. See `compression.py` in [Benchmarks](benchmarks.md).",
}
"""By method, why ours may be below the published gain; told only where it is."""
