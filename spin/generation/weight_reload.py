"""Replace the weights of a running vLLM engine: methods that vLLM adds to its worker."""

from __future__ import annotations


class ReloadExtension:
    """Methods that vLLM adds to its worker, for loading weights into the running engine."""

    def spin_reload(self, path: str) -> None:
        """Load the weights of the checkpoint in the folder `path`."""
        self.reload_weights(weights_path=path)  # type: ignore[attr-defined]
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        # On a CPU vLLM keeps a packed copy of a tied head, which its own reload does not update.
        for module in self.model_runner.get_model().modules():  # type: ignore[attr-defined]
            if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)
