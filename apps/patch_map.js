// The map of patches in the tab Features: at the pointer a thumbnail of the nearest patch; a click chooses it, a
// loop drawn around several chooses all of them. Gradio gives `element` and `trigger`.
let loop = null;
const near = 15;  // in units of the map
const find = (name) => element.querySelector(name);
const points = () => [...element.querySelectorAll('circle')];
const at = (event) => {
    const point = find('svg').createSVGPoint();
    [point.x, point.y] = [event.clientX, event.clientY];
    return point.matrixTransform(find('svg').getScreenCTM().inverse());
};
const nearest = (place) => {
    let [best, least] = [-1, near * near];
    points().forEach((point, number) => {
        const [x, y] = [point.cx.baseVal.value - place.x, point.cy.baseVal.value - place.y];
        if (x * x + y * y < least) [best, least] = [number, x * x + y * y];
    });
    return best;
};
const long = () => loop.some((place) => Math.hypot(place.x - loop[0].x, place.y - loop[0].y) > 10);
const drawLoop = () => find('.lasso').setAttribute('d', loop && loop.length > 1
    ? 'M' + loop.map((place) => place.x + ' ' + place.y).join('L') + 'Z' : '');
const showTip = (number, event) => {
    const [tip, box] = [find('.tip'), find('.patch-map').getBoundingClientRect()];
    tip.style.display = number < 0 ? 'none' : 'block';
    if (number < 0) return;
    const [side, columns] = [tip.offsetWidth, Number(find('.patch-map').dataset.columns)];
    const [column, row] = [number % columns, Math.floor(number / columns)];
    tip.style.backgroundPosition = `${-column * side}px ${-row * side}px`;
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    tip.style.left = (x + side + 16 < box.width ? x + 14 : x - side - 14) + 'px';
    tip.style.top = Math.min(Math.max(y - side / 2, 0), box.height - side) + 'px';
};
element.addEventListener('pointerdown', (event) => {
    if (!event.target.closest('svg')) return;
    loop = [at(event)];
});
element.addEventListener('pointermove', (event) => {
    if (!find('svg')) return;
    if (loop) {
        loop.push(at(event));
        drawLoop();
    }
    showTip(loop ? -1 : nearest(at(event)), event);
});
element.addEventListener('pointerup', (event) => {
    if (!loop) return;
    const many = long(), one = nearest(at(event));
    const inside = (point) => {
        const place = find('svg').createSVGPoint();
        [place.x, place.y] = [point.cx.baseVal.value, point.cy.baseVal.value];
        return find('.lasso').isPointInFill(place);
    };
    const chosen = points().map((point, number) => (many ? inside(point) : number === one) ? number : -1)
        .filter((number) => number >= 0);
    loop = null;
    drawLoop();
    points().forEach((point, number) => point.classList.toggle('chosen', chosen.includes(number)));
    if (chosen.length) trigger('select', {value: null, index: chosen});
});
for (const gone of ['pointerleave', 'pointercancel']) element.addEventListener(gone, (event) => {
    loop = null;
    if (find('svg')) { drawLoop(); showTip(-1, event); }
});
