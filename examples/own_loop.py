"""A loop of your own with the pure functions: a policy for one image, no trainer.

python examples/own_loop.py

An image has a bright patch. The "task loss" is any function of crops: here, how dark
they are. The logits of one policy are the only parameters, and REINFORCE moves its box
to the patch.
"""

import jax
import jax.numpy as jnp
import optax

from hapre_jax import boxes, operations, policy, policy_gradient

KEY_AREA = operations.KeyArea(min_side=0.35)
PATCH = jnp.array([0.5, 0.125, 0.875, 0.5])  # yxyx


def main(steps: int = 150) -> float:
    """Prints how the box moves and returns its IoU with the patch."""
    image = boxes.mask(PATCH, 32)[:, :, None]

    def task_loss(box):
        crop = boxes.crop_and_resize(image, box, size=8)
        return 1 - jnp.mean(crop)

    def loss(logits, key, sigma):
        mean = policy.mean_box(logits)
        actions = policy.sample(key, mean, sigma=sigma, num_samples=64)
        valid = jax.vmap(KEY_AREA.clip)(actions)
        log_probs = jax.vmap(lambda box: policy.log_prob(box, mean, sigma=sigma))
        task_losses = jax.vmap(task_loss)(valid)
        objective = policy_gradient.reinforce_loss(log_probs(actions), task_losses)
        # A mean out of the image draws boxes that are all clipped to the same one.
        return sigma * objective + policy_gradient.bound_loss(mean, KEY_AREA.clip(mean))

    optimizer = optax.adam(0.1)
    logits = jnp.zeros((16, 16))
    state = optimizer.init(logits)

    @jax.jit
    def update(logits, state, key, sigma):
        gradient = jax.grad(loss)(logits, key, sigma)
        change, state = optimizer.update(gradient, state)
        return optax.apply_updates(logits, change), state

    for step in range(steps):
        sigma = 0.3 * (0.1 / 0.3) ** (step / steps)
        logits, state = update(logits, state, jax.random.key(step), sigma)
        if (step + 1) % max(steps // 5, 1) == 0:
            iou = boxes.iou(policy.mean_box(logits), PATCH)
            print(f"step {step + 1}: IoU with the patch {iou:.2f}")
    return float(boxes.iou(policy.mean_box(logits), PATCH))


if __name__ == "__main__":
    main()
