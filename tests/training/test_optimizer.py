"""The optimizer's parameter groups."""

import torch

from safe_framework.config.schema import TrainingSpec
from safe_framework.core.model import SafeModel
from safe_framework.training.optimizer import make_optimizer, parameter_groups
from safe_framework_plugins.projectors.standard import StandardProjector
from tests.support.toys import DIM, HIDDEN, ToyEncoder, lora


def test_every_trainable_parameter_is_in_one_group(model: SafeModel) -> None:
    """Law: the groups hold each trainable parameter once, and nothing of base or encoder."""
    groups = parameter_groups(model, 1e-3, 1e-4, 0.01)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.trainable_parameters().values())
    assert held
    assert len(set(held)) == len(held)


def test_rates_go_to_their_parts(model: SafeModel) -> None:
    """Law: projectors get one rate and fusion adapters the other."""
    modality = model.modality("touch")
    groups = parameter_groups(model, 1e-3, 1e-4, 0.01)
    parts = {1e-3: [modality.projector], 1e-4: [modality.fusion, modality.segments]}
    for rate, own in parts.items():
        trainable = {id(p) for part in own for p in part.parameters() if p.requires_grad}
        grouped = {id(p) for group in groups if group["lr"] == rate for p in group["params"]}
        assert grouped == trainable


def test_matrices_alone_decay(model: SafeModel) -> None:
    """Law: matrices have the decay that was asked for; biases, norms and markers have none."""
    model.add_modality(
        "smell",
        encoder=ToyEncoder(),
        projector=StandardProjector(DIM, HIDDEN, tokens=2, hidden_dim=8),
        fusion=lora(model),
        markers=True,
    )
    decays = {
        id(p): group["weight_decay"]
        for group in parameter_groups(model, 1e-3, 1e-4, 0.01)
        for p in group["params"]
    }
    markers, named = 0, model.trainable_parameters()
    for name, parameter in named.items():
        markers += ".markers." in name
        decaying = parameter.ndim > 1 and ".markers." not in name
        assert decays[id(parameter)] == (0.01 if decaying else 0.0), name
    assert markers
    assert {0.0, 0.01} == set(decays.values())


def test_a_step_without_gradient_leaves_what_does_not_decay(model: SafeModel) -> None:
    """Law: under AdamW with zero gradients, matrices shrink and all else stays bit for bit."""
    spec = TrainingSpec(projector_learning_rate=0.1, fusion_learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(model, spec, None)
    named = model.trainable_parameters()
    with torch.no_grad():
        for parameter in named.values():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in named.values():
        expected = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))
