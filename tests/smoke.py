"""The smoke tests: a little of everything, where another version of torch could differ. By test: all of it, or these parameters."""

from __future__ import annotations

ALL: tuple[str, ...] = ()
"""Whatever the parameters."""
NETWORKS = ("resnet18", "deit_tiny_patch16_224")
"""Of `zoo`: convolutions with BatchNorm, attention."""

SMOKE: dict[str, tuple[str, ...]] = {
    # trace
    "test_axes.py::test_random_programs": ALL,
    "test_laws.py::test_forward_is_the_module_at_any_batch_size": NETWORKS,
    "test_random_nets.py::test_a_group_norm_mixes_the_positions_behind_the_channels": ALL,
    "test_recurrent.py::test_costs_are_those_of_every_matrix_at_every_step": ("lstm", "gru"),
    "test_transformers.py::test_forward_returns_the_model_output_class": ALL,
    # laws and costs
    "test_laws.py::test_law_1_nothing_is_changed_and_the_same_call_gives_the_same_bits": NETWORKS,
    "test_laws.py::test_law_2_keeping_all_changes_nothing": NETWORKS,
    "test_laws.py::test_law_3_removing_units_is_zeroing_them": NETWORKS,
    "test_laws.py::test_the_order_of_the_units_does_not_matter": NETWORKS,
    "test_laws.py::test_law_5_two_rounds_are_one": NETWORKS,
    "test_laws.py::test_law_6_cost_is_what_a_counter_counts_on_the_pruned_network": NETWORKS,
    "test_laws.py::test_law_7_a_budget_is_met_and_no_unit_too_many_goes": NETWORKS,
    "test_transformers.py::test_removing_is_zeroing_and_costs_are_exact": ALL,
    "test_profile.py::test_layers_add_up": ALL,
    # stats, select, compensate, apply
    "test_stats.py::test_golden_moments": ALL,
    "test_stats.py::test_every_site_is_what_its_layer_sees_all_calls_pooled": ALL,
    "test_scopes.py::test_isomorphic_groups_of_deit": ALL,
    "test_compensation.py::test_law_9_constant_units_are_removed_without_loss": ALL,
    "test_affine.py::test_law_9_affine_combinations_are_removed_without_loss": ALL,
    "test_pipeline.py::test_the_pipeline_is_its_steps": ALL,
    "test_forward.py::test_gradients_are_the_modules": ALL,
    "test_forward.py::test_vmap_over_an_ensemble": ALL,
    # modules and files
    "test_module.py::test_same_outputs_at_any_batch_size": ALL,
    "test_module.py::test_compile_of_it": ALL,
    "test_rebuild.py::test_the_original_class_at_new_sizes": ALL,
    "test_rebuild.py::test_a_rebuilt_class_can_be_scripted_and_exported": ALL,
    "test_export.py::test_every_format_at_every_batch_size": ALL,
    "test_export.py::test_filled_slices_in_torchscript": ALL,
    # training, commands, notebooks
    "test_training.py::test_it_learns_and_leaves_everything_else_alone": ALL,
    "test_cli.py::test_sparsify_and_hold": ALL,
    "test_notebooks.py::test_executed_afresh_it_says_what_is_committed": ("1_quick_start.ipynb",),
}


def is_smoke(nodeid: str) -> bool:
    """Whether a test is one of them.

    >>> is_smoke("tests/test_export.py::test_filled_slices_in_torchscript")
    True
    >>> name = "tests/test_laws.py::test_law_5_two_rounds_are_one"
    >>> is_smoke(name + "[resnet18]"), is_smoke(name + "[swin_t]")
    (True, False)
    """
    name, _, parameter = nodeid.removeprefix("tests/").partition("[")
    wanted = SMOKE.get(name)
    return wanted is not None and (wanted is ALL or parameter.removesuffix("]") in wanted)
