"""Per-token log-probabilities: their order and their sums."""

import torch
import transformers as hf

from spin.config.training import Dtype
from spin.models.forward import GroupLogps
from spin.models.packing import Group
from spin.models.token_logps import TokenLogps


def test_sums_add_the_tokens_of_each_completion_in_float64() -> None:
    tokens = TokenLogps(torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([0, 0, 2]), 3)
    assert tokens.sums().tolist() == [-3.0, 0.0, -0.5]
    assert tokens.sums().dtype == torch.float64


def test_every_layout_gives_the_same_tokens_in_the_order_of_completions_and_reading() -> None:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = hf.LlamaForCausalLM(config).eval()
    groups = [Group([1, 2, 3], [[4, 5], [6]]), Group([7], [[8, 9, 10]])]
    # By hand: log p of each token after the prompt and the tokens before it.
    expected = []
    with torch.no_grad():
        for group in groups:
            for completion in group.completions:
                sequence = torch.tensor([group.prompt_ids + completion])
                table = torch.log_softmax(model(sequence).logits[0], -1)
                start = len(group.prompt_ids) - 1
                expected += [float(table[start + place, token]) for place, token in enumerate(completion)]
        for layout in ("shared", "packed", "padded"):
            found = GroupLogps(model, Dtype.float32, layout)(groups)
            torch.testing.assert_close(found.values, torch.tensor(expected), rtol=0, atol=1e-5)
            assert found.owners.tolist() == [0, 0, 1, 2, 2, 2]
            assert found.num_completions == 3
