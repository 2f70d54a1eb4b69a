"""Task-oriented, learned pre-processing of medical images: DRL-HAPre in JAX.

The pure functions are useful alone, on arrays, under `jax.vmap`, `jit` and `grad`:

* `hapre_jax.boxes`: geometry of key areas, differentiable crop and resize
* `hapre_jax.losses`: cross-entropy and pixel-wise focal loss
* `hapre_jax.rewards`: the paper's reward (Eq. 5-8)
* `hapre_jax.policy`: a Gaussian over boxes, read off a grid of logits
* `hapre_jax.policy_gradient`: what a policy learns from the losses of its actions
* `hapre_jax.metrics`: scores of a confusion matrix, and their interval over seeds
* `hapre_jax.image_ops`: rotations, contrast and the like of gray images, as in Pillow
* `hapre_jax.heatmap`: class activation maps at any feature, and their pictures

`hapre_jax.framework` puts them together. Programs, each `python -m hapre_jax.NAME`, are
`train`, `evaluate`, `landscape`, `html_report`, `predict`, `homogenize`, `export`,
`serve`, `data`, `convert` and `nets`. README.md says where everything else is.

Letters of shapes, in all docstrings:

* `B` batch, `N` examples of a split
* `H W` image, `h w` feature map, `C` channels, `S` side of a crop the task network sees
* `K` classes, `A` candidate actions of one image, `n` sampled ones
* `g` side of the policy's grid of logits

`f32[B, H, W, C]` is a float32 array, `u8` 8-bit, `i32` integer. Images are in [0, 1],
boxes `(ymin, xmin, ymax, xmax)` in fractions of the image, half-open.

Reference: Yuan, Liu, Xu, Zhan, Chen, Lukasiewicz, "Painless and accurate medical image
analysis using deep reinforcement learning with task-oriented homogenized automatic
pre-processing", 2022.
"""

__version__ = "0.1.0"
