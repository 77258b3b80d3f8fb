() => {
    // Arrows move the token looked at while a picture has the focus; the space bar draws again; a question
    // opens the tab that its address names. What Gradio leaves without a name or a role gets one.
    const steps = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };
    const squares = ".panel, .patches";
    const pressed = {}; // arrows, by tab
    const seen = (selector) => [...document.querySelectorAll(selector)].find((each) => each.offsetParent);
    let last = null; // squares of HTML are new ones after every answer, and have lost the focus
    const inSquare = () => {
        const at = document.activeElement;
        return at.closest(squares) || (at === document.body && last && !last.isConnected);
    };
    new MutationObserver(() => {
        for (const each of document.querySelectorAll(squares)) if (each.tabIndex < 0) each.tabIndex = 0;
        for (const each of document.querySelectorAll(".empty[aria-label]:not([role])")) each.role = "img";
        for (const each of document.querySelectorAll("summary:not([aria-label])")) each.ariaLabel = "Save the chart";
    }).observe(document.body, { childList: true, subtree: true });
    document.addEventListener("focusin", (event) => { last = event.target.closest(squares); });
    document.addEventListener("pointerdown", (event) => { last = event.target.closest(squares); });
    document.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.altKey || event.metaKey) return;
        if (event.key === " " && (inSquare() || document.activeElement === document.body)) {
            const again = seen("button.again");
            if (again) {
                event.preventDefault();
                again.click();
            }
        } else if (steps[event.key] && inSquare()) {
            const tab = document.querySelector("[role=tab][aria-selected=true]").textContent.trim();
            const open = tab.toLowerCase();
            const keys = document.querySelector(`#${open}-keys textarea, #${open}-keys input`);
            if (keys) {
                event.preventDefault();
                const all = (pressed[open] ??= []);
                all.push(steps[event.key]);
                keys.value = `${all.length} ${all.slice(-30).join(" ")}`;
                keys.dispatchEvent(new Event("input", { bubbles: true }));
            }
        }
    });
    document.addEventListener("click", (event) => {
        const question = event.target.closest("header nav a");
        if (!question || event.ctrlKey || event.metaKey) return;
        const asked = new URL(question.href).searchParams.get("tab");
        const tabs = [...document.querySelectorAll("[role=tab]")];
        const tab = tabs.find((each) => each.textContent.trim().toLowerCase() === asked);
        if (tab) {
            event.preventDefault();
            tab.click();
        }
    });
}
